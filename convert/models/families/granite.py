"""Granite 3, dense: Llama with multipliers of embedding, scores, residuals and logits; they are multiplied into its
matrices, so that any release's Llama engine computes it, whatever the algorithm."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from .llama import DOWN, LLAMA, QUERY
from .llama import read as read_llama


def read(said: Reader) -> dict[str, Any]:
    heads, hidden = said.integer("num_attention_heads", 32), said.integer("hidden_size", 4096)
    residual = said.number("residual_multiplier", 1.0)
    multipliers = {
        LLAMA.embedding: said.number("embedding_multiplier", 1.0),
        QUERY: said.number("attention_multiplier", 1.0) * math.sqrt(said.integer("head_dim", hidden // heads)),
        "self_attn.o_proj": residual,
        DOWN: residual,
        LLAMA.head: 1 / said.number("logits_scaling", 1.0),
    }
    return read_llama(said) | {"multipliers": multipliers}


GRANITE = replace(
    LLAMA,
    title="Granite 3, dense",
    architectures=("GraniteForCausalLM",),
    written="LlamaForCausalLM",
    spellings=("granite",),
    read=read,
)
