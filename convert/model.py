"""A model's dimensions, read from a Hugging Face config.json of either style."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .architectures import FAMILIES, Family
from .errors import InputError

ROPE_TYPES = ("linear", "dynamic", "llama3", "yarn")
# Types whose frequencies TensorRT-LLM computes wrongly at load, unless the checkpoint brings its own tables.
TABLED_ROPE_TYPES = ("dynamic", "yarn")
LARGEST, MOST_LAYERS = 2**31, 10_000


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
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else architectures
    family = family_of(architecture)
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(f"config.json: hidden_act {config['hidden_act']!r} is not supported; supported: silu")
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    if hidden % heads:
        raise InputError(f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    positions = positive(config, "max_position_embeddings")
    base, scaling = read_rope(config, positions)
    mistral = architecture == "MistralForCausalLM"
    window = mistral and config.get("sliding_window") is not None
    model = Model(
        architecture=str(architecture),
        family=family,
        dtype=config.get("dtype") or config.get("torch_dtype"),
        hidden_size=hidden,
        intermediate_size=positive(config, "intermediate_size"),
        num_hidden_layers=positive(config, "num_hidden_layers", largest=MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=positive(config, "num_key_value_heads", heads),
        head_size=positive(config, "head_dim", hidden // heads),
        vocab_size=positive(config, "vocab_size"),
        max_position_embeddings=positions,
        norm_epsilon=number(config, "rms_norm_eps", 1e-6, largest=1.0),
        hidden_act="silu",
        rotary_base=base,
        rotary_scaling=scaling,
        attn_bias=flag(config, "attention_bias") and not mistral,
        mlp_bias=flag(config, "mlp_bias") and not mistral,
        tied=flag(config, "tie_word_embeddings"),
        sliding_window=positive(config, "sliding_window") if window else None,
    )
    check_heads(model)
    return model


def family_of(architecture: Any) -> Family:
    family = next((f for f in FAMILIES if architecture in f.architectures), None)
    if family is None:
        known = ", ".join(name for f in FAMILIES for name in f.architectures)
        raise InputError(f"config.json: architecture {architecture!r} is not supported; supported: {known}")
    return family


def check_heads(model: Model) -> None:
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    if heads % kv_heads:
        raise InputError(f"config.json: num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    if model.head_size % 2:
        raise InputError(f"config.json: head size {model.head_size} is odd; the rotary embedding needs pairs")


def model_of_checkpoint(config: dict[str, Any]) -> Model:
    """Interpret a TensorRT-LLM checkpoint's config.json.

    Raises:
        InputError: an architecture that this version cannot execute, or a missing or wrong value.
    """
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    positions = positive(config, "max_position_embeddings")
    rope = {"rope_theta": config.get("rotary_base"), "rope_scaling": config.get("rotary_scaling")}
    base, scaling = read_rope(rope, positions)
    for key, known in (("hidden_act", "silu"), ("position_embedding_type", "rope_gpt_neox")):
        if config.get(key) != known:
            raise InputError(f"config.json: {key} {config.get(key)!r} is not supported; supported: {known}")
    model = Model(
        architecture=str(config.get("architecture")),
        family=family_of(config.get("architecture")),
        dtype=config.get("dtype"),
        hidden_size=hidden,
        intermediate_size=positive(config, "intermediate_size", 4 * hidden),
        num_hidden_layers=positive(config, "num_hidden_layers", largest=MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=positive(config, "num_key_value_heads", heads),
        head_size=positive(config, "head_size", hidden // heads),
        vocab_size=positive(config, "vocab_size"),
        max_position_embeddings=positions,
        norm_epsilon=number(config, "norm_epsilon", 1e-5, largest=1.0),
        hidden_act="silu",
        rotary_base=base,
        rotary_scaling=scaling,
        attn_bias=flag(config, "attn_bias"),
        mlp_bias=flag(config, "mlp_bias"),
        tied=False,
        sliding_window=None,
    )
    check_heads(model)
    return model


def read_rope(config: dict[str, Any], positions: int) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling): scaling is None for plain rope, else a dictionary with ``rope_type`` and every number that
    type reads, defaults written out, since TensorRT-LLM's defaults are not transformers'."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise InputError(f"config.json: rope scaling must be an object, not {given!r}")
    scaling = dict(given)
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    in_scaling = scaling.pop("rope_theta", None)
    theta = number({"rope_theta": config.get("rope_theta") if in_scaling is None else in_scaling}, "rope_theta", 1e4)
    fraction = number(scaling if "partial_rotary_factor" in scaling else config, "partial_rotary_factor", 1.0)
    scaling.pop("partial_rotary_factor", None)
    if fraction != 1.0:
        raise InputError(f"config.json: partial_rotary_factor {fraction} is not supported; supported: 1.0")
    if kind == "default":
        if scaling:
            raise InputError(f"config.json: rope scaling has {', '.join(scaling)} but no rope_type; state one")
        return theta, None
    if kind not in ROPE_TYPES:
        raise InputError(
            f"config.json: rope type {kind!r} is not supported; supported: default, {', '.join(ROPE_TYPES)}"
        )
    if number(scaling, "factor") < 1:
        raise InputError(f"config.json: rope type {kind!r} needs a factor of at least 1, not {scaling['factor']}")
    if kind == "llama3":
        low, high = number(scaling, "low_freq_factor"), number(scaling, "high_freq_factor")
        if low >= high:
            raise InputError(f"config.json: low_freq_factor {low} must be less than high_freq_factor {high}")
        scaling.setdefault("original_max_position_embeddings", positions)
        positive(scaling, "original_max_position_embeddings")
    elif kind == "yarn":
        scaling.setdefault("original_max_position_embeddings", positions)
        positive(scaling, "original_max_position_embeddings")
        for key in ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"):
            if scaling.get(key) is not None:
                number(scaling, key)
    return theta, {"rope_type": kind, **scaling}


def positive(
    config: dict[str, Any], key: str, default: int | None = None, largest: int = LARGEST, file: str = "config.json"
) -> int:
    """A positive integer of a config; file: the one it was read from, for messages."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= largest:
        raise InputError(f"{file}: {key} must be an integer from 1 to {largest}, not {shown(value)}")
    return value


def number(config: dict[str, Any], key: str, default: float | None = None, largest: float = 1e30) -> float:
    """A positive finite number of a config."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= largest:
        raise InputError(f"config.json: {key} must be a positive number of at most {largest:g}, not {shown(value)}")
    return float(value)


def flag(config: dict[str, Any], key: str, file: str = "config.json") -> bool:
    """True or false in a config; file: the one it was read from, for messages."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{file}: {key} must be true or false, not {shown(value)}")
    return bool(value)


def shown(value: Any) -> str:
    """A value from a file, short enough for an error line."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**18 else "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."
