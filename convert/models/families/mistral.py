"""Mistral: Llama's tensors without biases, and an attention window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from .llama import LLAMA

WINDOW = 4096


def read(said: Reader) -> dict[str, Any]:
    """A window of 4096 tokens, unless config.json says another, or null."""
    whole = said.values.get("sliding_window", WINDOW) is None
    return {"sliding_window": None if whole else said.integer("sliding_window", WINDOW)}


MISTRAL = replace(
    LLAMA,
    title="Mistral, Mistral-Nemo",
    architectures=("MistralForCausalLM",),
    spellings=("mistral",),
    defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8},
    reduce_fusion=False,
    read=read,
)
