"""Qwen 1: Qwen2 under other names, its queries, keys and values in one module, and twice its width stated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import InputError
from ...files.reader import Reader
from ..family import renamed, stacked
from ..pieces import Norm
from .qwen2 import QWEN2
from .qwen2 import config as qwen2_config

QKV = [f"attn.c_attn.{part}" for part in ("query", "key", "value")]
GATE, UP, DOWN = "mlp.w2", "mlp.w1", "mlp.c_proj"
PARTS = (QKV, ("attn.c_proj",), (GATE,), (UP,), (DOWN,))


def read(said: Reader) -> dict[str, Any]:
    said.require("no_bias", True, "biases of queries, keys and values alone are known")
    if not said.flag("scale_attn_weights", True) or said.number("rotary_pct", 1.0) != 1:
        raise InputError("config.json: scale_attn_weights must be true and rotary_pct 1: engines compute no other Qwen")
    return stated(said) | {"attn_bias": True} | shorter(said)


def shorter(said: Reader) -> dict[str, Any]:
    """Beyond seq_length, queries and frequencies are scaled by what engines do not read: positions end there."""
    scaled = said.flag("use_dynamic_ntk") or said.flag("use_logn_attn")
    positions = said.integer("max_position_embeddings", 8192)
    return {"max_position_embeddings": min(positions, said.integer("seq_length", positions))} if scaled else {}


def config(model: Any) -> dict[str, Any]:
    return qwen2_config(model) | {"qwen_type": "qwen", "intermediate_size": 2 * model.intermediate_size}


def stated(said: Reader) -> dict[str, Any]:
    return {"intermediate_size": said.integer("intermediate_size", 2) // 2}


QWEN = replace(
    renamed(QWEN2, *PARTS),
    title="Qwen",
    architectures=("QWenLMHeadModel",),
    spellings=("qwen",),
    embedding="transformer.wte.weight",
    final_norm=Norm("ln_f", "transformer.ln_f"),
    layer="transformer.h.{i}.",
    norms=(Norm("input_layernorm", "ln_1"), Norm("post_layernorm", "ln_2")),
    views=stacked("attn.c_attn", QKV),
    ignored=("rotary_emb.inv_freq", "attn.masked_bias"),
    rope_types=(),
    keys={"norm_epsilon": "layer_norm_epsilon", "rope_theta": "rotary_emb_base", "head_size": "kv_channels"},
    implied=("num_key_value_heads",),
    defaults={"max_position_embeddings": 8192},
    read=read,
    config=config,
    stated=stated,
)
