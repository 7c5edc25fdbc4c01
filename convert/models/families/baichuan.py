"""Baichuan 1 and 2: Llama with one module for queries, keys and values; the 13B ones have ALiBi, the second ones an
output projection of rows of length 1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..family import Family, stacked, unbiased
from ..pieces import ALIBI
from .llama import KEY, LLAMA, QUERY, VALUE

# Which of the four a config.json of a model describes: nothing in it says so.
HEADS_7B, VOCABULARY_1 = 32, 64000
VERSIONS = ("v1_7b", "v1_13b", "v2_7b", "v2_13b")


def version(said: Reader) -> str:
    """TensorRT-LLM's name of one of the four."""
    if said.has("model_version"):
        return said.choice("model_version", VERSIONS)
    size = "7b" if said.integer("num_attention_heads", HEADS_7B) == HEADS_7B or not_long(said) else "13b"
    return f"v{1 if said.integer('vocab_size', VOCABULARY_1) == VOCABULARY_1 else 2}_{size}"


def not_long(said: Reader) -> bool:
    """The 13B ones state model_max_length alone, and no rotary embedding."""
    return said.has("max_position_embeddings") and not said.has("model_max_length")


def read(said: Reader) -> dict[str, Any]:
    if said.number("rope_theta", 1e4) != 1e4:
        raise said.wrong("rope_theta", "10000: neither Baichuan's own code nor TensorRT-LLM's reads another")
    return {}


def family(name: str) -> Family:
    """One of the four."""
    large = name.endswith("13b")
    return replace(
        LLAMA,
        title=f"Baichuan {name[1]} {name[3:].upper()}",
        architectures=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
        spellings=("baichuan",),
        when=lambda said: version(said) == name,
        linears=unbiased(LLAMA.linears),
        views=stacked("self_attn.W_pack", (QUERY, KEY, VALUE)),
        positions=ALIBI if large else LLAMA.positions,
        rope_types=(),
        normalized_head=name.startswith("v2"),
        pipelined=False,
        keys={**LLAMA.keys, **({"max_position_embeddings": "model_max_length"} if large else {})},
        implied=("num_key_value_heads", "head_size"),
        defaults={"max_position_embeddings": 4096},
        reduce_fusion=False,
        read=read,
        config=lambda model: {"model_version": name},
    )


BAICHUAN = tuple(family(name) for name in VERSIONS)
