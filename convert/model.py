"""A model's dimensions, read from a Hugging Face config.json of either style."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .architectures import FAMILIES, Family
from .errors import InputError

ROPE_TYPES = ("linear", "dynamic", "llama3", "yarn")


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
    architecture = (config.get("architectures") or [None])[0]
    family = next((f for f in FAMILIES if architecture in f.architectures), None)
    if family is None:
        known = ", ".join(name for f in FAMILIES for name in f.architectures)
        raise InputError(f"config.json: architecture {architecture!r} is not supported; supported: {known}")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown method")
        raise InputError(f"config.json: the model is already quantized ({method}); give the unquantized model")
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(f"config.json: hidden_act {config['hidden_act']!r} is not supported; supported: silu")

    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    kv_heads = positive(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise InputError(f"config.json: num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    if config.get("head_dim") is None and hidden % heads:
        raise InputError(
            f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}; set head_dim"
        )
    base, scaling = read_rope(config)
    mistral = architecture == "MistralForCausalLM"
    return Model(
        architecture=architecture,
        family=family,
        dtype=config.get("dtype") or config.get("torch_dtype"),
        hidden_size=hidden,
        intermediate_size=positive(config, "intermediate_size"),
        num_hidden_layers=positive(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_size=positive(config, "head_dim", hidden // heads),
        vocab_size=positive(config, "vocab_size"),
        max_position_embeddings=positive(config, "max_position_embeddings"),
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        hidden_act="silu",
        rotary_base=base,
        rotary_scaling=scaling,
        attn_bias=bool(config.get("attention_bias", False)) and not mistral,
        mlp_bias=bool(config.get("mlp_bias", False)) and not mistral,
        tied=bool(config.get("tie_word_embeddings", False)),
        sliding_window=config.get("sliding_window") if mistral else None,
    )


def model_of_checkpoint(config: dict[str, Any]) -> Model:
    """Interpret a TensorRT-LLM checkpoint's config.json.

    Raises:
        InputError: an architecture that this version cannot execute, or a missing or wrong value.
    """
    architecture = config.get("architecture")
    family = next((f for f in FAMILIES if architecture in f.architectures), None)
    if family is None:
        raise InputError(f"config.json: architecture {architecture!r} is not supported, or this is no checkpoint")
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    return Model(
        architecture=str(architecture),
        family=family,
        dtype=config.get("dtype"),
        hidden_size=hidden,
        intermediate_size=positive(config, "intermediate_size", 4 * hidden),
        num_hidden_layers=positive(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=positive(config, "num_key_value_heads", heads),
        head_size=positive(config, "head_size", hidden // heads),
        vocab_size=positive(config, "vocab_size"),
        max_position_embeddings=positive(config, "max_position_embeddings"),
        norm_epsilon=float(config.get("norm_epsilon", 1e-5)),
        hidden_act=str(config.get("hidden_act", "silu")),
        rotary_base=float(config.get("rotary_base", 10000.0)),
        rotary_scaling=config.get("rotary_scaling"),
        attn_bias=bool(config.get("attn_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        tied=False,
        sliding_window=None,
    )


def read_rope(config: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling): scaling is None for plain rope, else a dictionary with ``rope_type``."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = parameters.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    kind = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
    parameters.pop("type", None)
    fraction = parameters.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0
    if fraction != 1.0:
        raise InputError(f"config.json: partial_rotary_factor {fraction} is not supported; supported: 1.0")
    if not isinstance(theta, (int, float)) or not math.isfinite(theta) or theta <= 0:
        raise InputError(f"config.json: rope_theta must be a positive number, not {theta!r}")
    if kind == "default":
        return float(theta), None
    if kind not in ROPE_TYPES:
        raise InputError(
            f"config.json: rope type {kind!r} is not supported; supported: default, {', '.join(ROPE_TYPES)}"
        )
    factor = parameters.get("factor")
    if not isinstance(factor, (int, float)) or factor < 1:
        raise InputError(f"config.json: rope type {kind!r} needs a factor of at least 1, not {factor!r}")
    return float(theta), {"rope_type": kind, **parameters}


def positive(config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise InputError(f"config.json: {key} must be a positive integer, not {value!r}")
    return value
