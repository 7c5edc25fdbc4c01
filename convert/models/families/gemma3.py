"""Gemma 3, text: Gemma 2 without a cap of scores, with norms of each head's query and key, and another rotary base
where there is a window."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from .gemma import read_any
from .gemma import stated as stated_gemma
from .gemma2 import GEMMA2, cap, check_pattern
from .gemma2 import config as gemma2_config
from .qwen3 import QWEN3

PATTERN = 6


def read(said: Reader) -> dict[str, Any]:
    pattern = said.integer("sliding_window_pattern", said.integer("_sliding_window_pattern", PATTERN))
    check_pattern(said, pattern)
    if said.has("attn_logit_softcapping"):
        raise said.wrong("attn_logit_softcapping", "null: TensorRT-LLM's Gemma 3 has no cap of scores")
    ropes = said.section("rope_parameters")
    local = ropes.section("sliding_attention")
    if ropes.values and not (local.values and ropes.section("full_attention").values):
        raise said.wrong("rope_parameters", "an object with full_attention and sliding_attention in it")
    if local.text_or_none("rope_type") not in (None, "default"):
        raise local.wrong("rope_type", "default: TensorRT-LLM scales no frequencies of layers with a window")
    return (
        read_any(said)
        | scaled(said, said.integer("head_dim", 256))
        | {
            "sliding_window": said.integer("sliding_window", 4096),
            "window_pattern": pattern,
            "local_base": (local if local.has("rope_theta") else said).number(
                "rope_theta" if local.has("rope_theta") else "rope_local_base_freq", 1e4
            ),
        }
    )


def scaled(said: Reader, head_size: int) -> dict[str, Any]:
    return {
        "q_scaling": math.sqrt(said.integer("query_pre_attn_scalar", 256) / head_size),
        "logit_cap": cap(said, "final_logit_softcapping", None),
    }


def stated(said: Reader) -> dict[str, Any]:
    windows = {
        "sliding_window": said.integer("sliding_window"),
        "window_pattern": said.integer("_sliding_window_pattern"),
    }
    local = {"local_base": said.number("rope_local_base_freq", 1e4)}
    return stated_gemma(said) | scaled(said, said.integer("head_size")) | windows | local


def config(model: Any) -> dict[str, Any]:
    own = gemma2_config(model) | {
        "rope_local_base_freq": model.local_base,
        "sliding_window": model.sliding_window,
        "_sliding_window_pattern": model.window_pattern,
        "qk_layernorm": True,
    }
    del own["attn_logit_softcapping"]
    return own


GEMMA3 = replace(
    GEMMA2,
    title="Gemma 3, text",
    architectures=("Gemma3ForCausalLM",),
    spellings=("gemma3_text",),
    query_key_norms=QWEN3.query_key_norms,
    shares_embedding=False,
    rope=replace(GEMMA2.rope, theta=1e6),
    rope_types=("linear",),
    defaults={"max_position_embeddings": 131072, "num_key_value_heads": 4, "head_size": 256},
    since="0.19.0",
    read=read,
    config=config,
    stated=stated,
)
