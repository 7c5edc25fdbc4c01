"""A model's dimensions, read from a Hugging Face config.json of either style."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .architectures import FAMILIES, Family
from .checkpoint_keys import check_config
from .errors import InputError, shown
from .reader import Reader

ROPE_TYPES = ("linear", "dynamic", "llama3", "yarn")
# Types whose frequencies TensorRT-LLM computes wrongly at load, unless the checkpoint brings its own tables.
TABLED_ROPE_TYPES = ("dynamic", "yarn")
MOST_LAYERS = 10_000


@dataclass(frozen=True)
class Model:
    """Dimensions and constants of a decoder, under TensorRT-LLM's names.

    Attributes:
        dtype: the dtype the config states (torch_dtype or dtype), or None.
        rotary_scaling: the rope scaling dictionary with a ``rope_type``, or None for plain rope.
        sliding_window: attention window in tokens, or None.
    """

    architecture: str
    family: Family
    dtype: str | None
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    hidden_act: str
    rotary_base: float
    rotary_scaling: dict[str, Any] | None
    attn_bias: bool
    mlp_bias: bool
    tied: bool
    sliding_window: int | None

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_size

    @property
    def kv_size(self) -> int:
        return self.num_key_value_heads * self.head_size

    @property
    def brings_rotary_tables(self) -> bool:
        return self.rotary_scaling is not None and self.rotary_scaling["rope_type"] in TABLED_ROPE_TYPES

    def dimension(self, name: str) -> int:
        return int(getattr(self, name))

    def out_features(self, linear: str) -> list[int]:
        """Rows of each part of a fused linear."""
        return [self.dimension(name) for name in self.family.linear(linear).out_features]

    def has_bias(self, linear: str) -> bool:
        return bool(getattr(self, self.family.linear(linear).bias))


def read_model(config: dict[str, Any]) -> Model:
    """Interpret a Hugging Face config: ``rope_theta``/``rope_scaling`` and ``torch_dtype`` (transformers 4)
    as well as ``rope_parameters`` and ``dtype`` (transformers 5).

    Raises:
        InputError: an architecture, activation, rope type or value that this version cannot convert.
    """
    said, architectures = Reader(config), config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else architectures
    family = family_of(architecture)
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(f"config.json: hidden_act {shown(config['hidden_act'])} is not supported; supported: silu")
    hidden, heads = said.integer("hidden_size"), said.integer("num_attention_heads")
    if hidden % heads:
        raise InputError(f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    positions = said.integer("max_position_embeddings")
    base, scaling = read_rope(config, positions)
    mistral = architecture == "MistralForCausalLM"
    window = mistral and config.get("sliding_window") is not None
    model = Model(
        architecture=str(architecture),
        family=family,
        dtype=config.get("dtype") or config.get("torch_dtype"),
        hidden_size=hidden,
        intermediate_size=said.integer("intermediate_size"),
        num_hidden_layers=said.integer("num_hidden_layers", largest=MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=said.integer("num_key_value_heads", heads),
        head_size=said.integer("head_dim", hidden // heads),
        vocab_size=said.integer("vocab_size"),
        max_position_embeddings=positions,
        norm_epsilon=float(said.number("rms_norm_eps", 1e-6, largest=1.0)),
        hidden_act="silu",
        rotary_base=base,
        rotary_scaling=scaling,
        attn_bias=said.flag("attention_bias") and not mistral,
        mlp_bias=said.flag("mlp_bias") and not mistral,
        tied=said.flag("tie_word_embeddings"),
        sliding_window=said.integer("sliding_window") if window else None,
    )
    check_heads(model)
    return model


def family_of(architecture: Any) -> Family:
    family = next((f for f in FAMILIES if architecture in f.architectures), None)
    if family is None:
        known = ", ".join(name for f in FAMILIES for name in f.architectures)
        raise InputError(f"config.json: architecture {shown(architecture)} is not supported; supported: {known}")
    return family


def check_heads(model: Model) -> None:
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    if heads % kv_heads:
        raise InputError(f"config.json: num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    if model.head_size % 2:
        raise InputError(f"config.json: head size {model.head_size} is odd; the rotary embedding needs pairs")


@dataclass(frozen=True)
class Sizes:
    """The sizes of a decoder of any architecture, under TensorRT-LLM's names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    vocab_size: int


def read_sizes(said: Reader) -> Sizes:
    """The sizes that a TensorRT-LLM checkpoint's config.json states, or that TensorRT-LLM takes where it does not."""
    hidden, heads = said.integer("hidden_size"), said.integer("num_attention_heads")
    if hidden % heads and not said.has("head_size"):
        raise InputError(
            f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}; state head_size"
        )
    kv_heads = said.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise InputError(f"config.json: num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    return Sizes(
        hidden_size=hidden,
        intermediate_size=said.integer("intermediate_size", 4 * hidden),
        num_hidden_layers=said.integer("num_hidden_layers", largest=MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_size=said.integer("head_size", hidden // heads),
        vocab_size=said.integer("vocab_size"),
    )


def model_of_checkpoint(config: dict[str, Any]) -> Model:
    """Interpret a TensorRT-LLM checkpoint's config.json.

    Raises:
        InputError: an architecture that this version cannot execute, a key that it does not know, or a missing or
            wrong value.
    """
    said = Reader(config)
    sizes, positions, attn_bias = read_sizes(said), said.integer("max_position_embeddings"), said.flag("attn_bias")
    check_config(said, sizes.head_size, attn_bias)
    said.section("rotary_scaling")
    base, scaling = read_rope(
        {"rope_theta": said.number("rotary_base", 1e4), "rope_scaling": config.get("rotary_scaling")}, positions
    )
    said.choice("hidden_act", ("silu",))
    said.choice("position_embedding_type", ("rope_gpt_neox",))
    model = Model(
        architecture=said.text("architecture"),
        family=family_of(config.get("architecture")),
        dtype=said.text("dtype"),
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=sizes.num_key_value_heads,
        head_size=sizes.head_size,
        vocab_size=sizes.vocab_size,
        max_position_embeddings=positions,
        norm_epsilon=float(said.number("norm_epsilon", 1e-5, largest=1.0)),
        hidden_act="silu",
        rotary_base=base,
        rotary_scaling=scaling,
        attn_bias=attn_bias,
        mlp_bias=said.flag("mlp_bias"),
        tied=False,
        sliding_window=None,
    )
    check_heads(model)
    return model


def read_rope(config: dict[str, Any], positions: int) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling): scaling is None for plain rope, else a dictionary with ``rope_type`` and every number that
    type reads, defaults written out, since TensorRT-LLM's defaults are not transformers'."""
    said = Reader(config)
    parameters = said.section("rope_parameters" if said.has("rope_parameters") else "rope_scaling")
    scaling = dict(parameters.values)
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    in_scaling = scaling.pop("rope_theta", None)
    theta = float((said if in_scaling is None else parameters).number("rope_theta", 1e4))
    fraction = (parameters if parameters.has("partial_rotary_factor") else said).number("partial_rotary_factor", 1.0)
    scaling.pop("partial_rotary_factor", None)
    if fraction != 1.0:
        raise InputError(f"config.json: partial_rotary_factor {fraction} is not supported; supported: 1.0")
    if kind == "default":
        if scaling:
            raise InputError(f"config.json: rope scaling has {shown(', '.join(scaling))} but no rope_type; state one")
        return theta, None
    if kind not in ROPE_TYPES:
        raise InputError(
            f"config.json: rope type {shown(kind)} is not supported; supported: default, {', '.join(ROPE_TYPES)}"
        )
    if parameters.number("factor") < 1:
        raise InputError(f"config.json: rope type {kind} needs a factor of at least 1, not {shown(scaling['factor'])}")
    if kind == "llama3":
        low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
        if low >= high:
            raise InputError(f"config.json: low_freq_factor {low} must be less than high_freq_factor {high}")
        scaling["original_max_position_embeddings"] = parameters.integer("original_max_position_embeddings", positions)
    elif kind == "yarn":
        scaling["original_max_position_embeddings"] = parameters.integer("original_max_position_embeddings", positions)
        for key in ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"):
            if scaling.get(key) is not None:
                parameters.number(key)
    return theta, {"rope_type": kind, **scaling}
