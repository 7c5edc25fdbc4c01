"""Gemma 2: Gemma with norms behind attention and MLP too, caps of scores and logits, its own scale of scores, and
windows on every other layer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ...errors import InputError
from ...files.reader import Reader
from ..family import behind
from ..pieces import SANDWICHED, Norm
from .gemma import GEMMA
from .gemma import config as gemma_config
from .gemma import read as read_gemma
from .gemma import stated as stated_gemma

# Every so many-th layer sees all tokens.
PATTERN = 2


def read(said: Reader) -> dict[str, Any]:
    check_pattern(said, PATTERN)
    window = said.integer("sliding_window", 4096) if said.values.get("sliding_window", 1) else None
    return (
        read_gemma(said)
        | scaled(said, said.integer("head_dim", 256))
        | {"sliding_window": window, "window_pattern": PATTERN}
    )


def check_pattern(said: Reader, pattern: int) -> None:
    """Raise InputError where other layers than every so many-th see all tokens."""
    layers = said.texts("layer_types")
    if any((kind == "full_attention") != ((i + 1) % pattern == 0) for i, kind in enumerate(layers)):
        raise InputError(
            f"config.json: layer_types must be full_attention on every {pattern}. layer, and sliding_attention between"
        )


def stated(said: Reader) -> dict[str, Any]:
    return stated_gemma(said) | scaled(said, said.integer("head_size"))


def scaled(said: Reader, head_size: int) -> dict[str, Any]:
    """What config.json of a model or a checkpoint says of scores and logits, under the same names."""
    return {
        "q_scaling": math.sqrt(said.integer("query_pre_attn_scalar", 256) / head_size),
        "attention_cap": cap(said, "attn_logit_softcapping", 50.0),
        "logit_cap": cap(said, "final_logit_softcapping", 30.0),
    }


def cap(said: Reader, key: str, usual: float | None) -> float | None:
    """A soft cap; null is none, and silence what transformers takes."""
    return said.number(key, usual) if said.has(key) or (key not in said.values and usual is not None) else None


def config(model: Any) -> dict[str, Any]:
    return gemma_config(model) | {
        "inter_layernorms": True,
        "query_pre_attn_scalar": round(model.q_scaling**2 * model.head_size),
        "attn_logit_softcapping": model.attention_cap,
        "final_logit_softcapping": model.logit_cap,
    }


GEMMA2 = replace(
    GEMMA,
    title="Gemma 2",
    architectures=("Gemma2ForCausalLM",),
    spellings=("gemma2",),
    arrangement=SANDWICHED,
    norms=(
        Norm("input_layernorm", "input_layernorm"),
        Norm("post_layernorm", "post_attention_layernorm"),
        Norm("pre_feedforward_layernorm", "pre_feedforward_layernorm"),
        Norm("post_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
    groups=behind(GEMMA.groups, {"post_layernorm": "pre_feedforward_layernorm"}),
    keys={**GEMMA.keys, "hidden_act": "hidden_activation"},
    defaults={"max_position_embeddings": 8192, "num_key_value_heads": 4, "head_size": 256},
    read=read,
    config=config,
    stated=stated,
)
