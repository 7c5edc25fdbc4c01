"""InternLM2 and 2.5: Llama under other names, its queries, keys and values in one module, grouped by heads of keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..family import renamed, stacked, unbiased
from ..pieces import GROUPED, Norm
from .llama import LLAMA
from .llama import config as llama_config

MODULE = "attention.wqkv"
QKV = [f"{MODULE}.{part}" for part in ("query", "key", "value")]
GATE, UP, DOWN = "feed_forward.w1", "feed_forward.w3", "feed_forward.w2"
PARTS = (QKV, ("attention.wo",), (GATE,), (UP,), (DOWN,))


def read(said: Reader) -> dict[str, Any]:
    said.require("bias", False, "no InternLM2 has biases")
    return {}


def config(model: Any) -> dict[str, Any]:
    own = llama_config(model)
    return own | {"moe": own["moe"] | {"normalization_mode": 1}}


NAMED = renamed(LLAMA, *PARTS)
INTERNLM2 = replace(
    NAMED,
    title="InternLM2, InternLM2.5",
    architectures=("InternLM2ForCausalLM",),
    spellings=("internlm2",),
    embedding="model.tok_embeddings.weight",
    head="output.weight",
    norms=(Norm("input_layernorm", "attention_norm"), Norm("post_layernorm", "ffn_norm")),
    linears=unbiased(NAMED.linears),
    views=stacked(MODULE, QKV, GROUPED),
    reduce_fusion=False,
    read=read,
    config=config,
)
