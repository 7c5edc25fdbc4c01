"""A model's dimensions, read from a Hugging Face config.json of either style."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import InputError, shown
from ..files.reader import Reader
from .family import FAMILIES, Family
from .rope import TABLED_ROPE_TYPES, check_rope, read_rope

MOST_LAYERS = 10_000
LLAMA, MISTRAL = "LlamaForCausalLM", "MistralForCausalLM"
# What files of either kind were called before.
SPELLINGS = {"LLaMAForCausalLM": LLAMA, "llama": LLAMA, "mistral": MISTRAL}
# What transformers takes for a key that config.json does not have.
POSITIONS = {LLAMA: 2048, MISTRAL: 131072}
MISTRAL_WINDOW, MISTRAL_KV_HEADS = 4096, 8


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
    said, architecture = Reader(config), architecture_of(config)
    family = family_of(architecture)
    if config.get("hidden_act") not in (None, "silu", "swish"):
        raise InputError(f"config.json: hidden_act {shown(config['hidden_act'])} is not supported; supported: silu")
    mistral = architecture == MISTRAL
    hidden, heads = said.integer("hidden_size"), said.integer("num_attention_heads")
    if hidden % heads and not said.has("head_dim"):
        raise InputError(
            f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}; state head_dim"
        )
    kv_heads = MISTRAL_KV_HEADS if mistral and "num_key_value_heads" not in config else heads
    positions = said.integer("max_position_embeddings", POSITIONS[architecture])
    base, scaling = read_rope(config, positions)
    model = Model(
        architecture=architecture,
        family=family,
        dtype=said.text_or_none("dtype") or said.text_or_none("torch_dtype"),
        hidden_size=hidden,
        intermediate_size=said.integer("intermediate_size"),
        num_hidden_layers=said.integer("num_hidden_layers", largest=MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=said.integer("num_key_value_heads", kv_heads),
        head_size=said.integer("head_dim", hidden // heads),
        vocab_size=said.integer("vocab_size"),
        max_position_embeddings=positions,
        norm_epsilon=float(said.number("rms_norm_eps", 1e-6, largest=1.0)),
        hidden_act="silu",
        rotary_base=base,
        rotary_scaling=scaling,
        attn_bias=said.flag("attention_bias", said.flag("bias")) and not mistral,
        mlp_bias=said.flag("mlp_bias") and not mistral,
        tied=said.flag("tie_word_embeddings"),
        sliding_window=window_of(said, architecture),
    )
    check_heads(model)
    return model


def window_of(said: Reader, architecture: str) -> int | None:
    """The attention window in tokens, as transformers' model of the architecture has it: Llama's attention reads none
    whatever config.json says, Mistral's has one of 4096 unless config.json says another, or null."""
    if architecture != MISTRAL or said.values.get("sliding_window", MISTRAL_WINDOW) is None:
        return None
    return said.integer("sliding_window", MISTRAL_WINDOW)


def architecture_of(config: dict[str, Any]) -> str:
    """The class that config.json names; where it names none, the one that its model_type implies.

    Raises:
        InputError: a class that is not supported, or a model that holds a text model among others.
    """
    stated = config.get("architectures")
    stated = stated[0] if isinstance(stated, list) and len(stated) == 1 else stated
    name = config.get("model_type") if stated in (None, []) else stated
    name = SPELLINGS.get(name, name) if isinstance(name, str) else stated
    if isinstance(config.get("text_config"), dict) and not any(name in family.architectures for family in FAMILIES):
        raise InputError(
            f"config.json: {shown(name)} holds its text model in text_config; save that by itself "
            "(model.language_model.save_pretrained) and give its folder"
        )
    return next(known for known in family_of(name).architectures if known == name)


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
    check_rope(model.rotary_base, model.rotary_scaling, model.head_size, model.max_position_embeddings)
