"""BLOOM: ALiBi, LayerNorms, one behind the embedding too; queries, keys and values of a head side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..family import renamed, stacked
from ..pieces import ALIBI, GROUPED, LAYER, Norm
from .gpt2 import GPT2

MODULE = "self_attention.query_key_value"
QKV = [f"{MODULE}.{part}" for part in ("query", "key", "value")]


def read(said: Reader) -> dict[str, Any]:
    said.require("apply_residual_connection_post_layernorm", False, "engines build no other")
    return {"attn_bias": True, "mlp_bias": True}


def config(model: Any) -> dict[str, Any]:
    return {"max_position_embeddings": None}


BLOOM = replace(
    renamed(GPT2, QKV, ("self_attention.dense",), ("mlp.dense_h_to_4h",), ("mlp.dense_4h_to_h",)),
    title="BLOOM, BLOOMZ",
    architectures=("BloomForCausalLM",),
    spellings=("bloom",),
    embedding="transformer.word_embeddings.weight",
    position_embedding=None,
    embedding_norm=Norm("ln_embed", "transformer.word_embeddings_layernorm", LAYER),
    norms=(
        Norm("input_layernorm", "input_layernorm", LAYER),
        Norm("post_layernorm", "post_attention_layernorm", LAYER),
    ),
    views=stacked(MODULE, QKV, GROUPED),
    ignored=(),
    positions=ALIBI,
    pipelined=False,
    keys={
        "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "norm_epsilon": "layer_norm_epsilon",
        "max_position_embeddings": "seq_length",
    },
    implied=("num_key_value_heads", "head_size", "intermediate_size"),
    defaults={"max_position_embeddings": 2048},
    activations={"gelu_new": "gelu"},
    fixed_epsilon=True,
    read=read,
    config=config,
)  # fmt: skip
