"""Qwen3 (dense): Qwen2 without biases, with norms of every head's query and key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..pieces import Norm
from .qwen2 import QWEN2
from .qwen2 import config as qwen2_config
from .qwen2 import read as qwen2_read


def read(said: Reader) -> dict[str, Any]:
    said.require("attention_bias", False, "TensorRT-LLM's Qwen3 has no biases")
    return qwen2_read(said) | {"attn_bias": False}


def config(model: Any) -> dict[str, Any]:
    return qwen2_config(model) | {"qwen_type": "qwen3", "seq_length": 8192, "use_logn_attn": False}


QWEN3 = replace(
    QWEN2,
    title="Qwen3",
    architectures=("Qwen3ForCausalLM",),
    spellings=("qwen3",),
    defaults={**QWEN2.defaults, "head_size": 128},
    query_key_norms=(
        Norm("attention.q_layernorm", "self_attn.q_norm", size="head_size"),
        Norm("attention.k_layernorm", "self_attn.k_norm", size="head_size"),
    ),
    since="1.0.0",
    biased=False,
    read=read,
    config=config,
)
