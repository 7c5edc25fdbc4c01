"""InternLM: Llama with biases in all of its attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from .llama import LLAMA


def read(said: Reader) -> dict[str, Any]:
    rotary = said.section("rotary")
    if rotary.number("base", 1e4) != 1e4:
        raise rotary.wrong("base", "10000: TensorRT-LLM reads no other")
    return {"attn_bias": said.flag("bias", True)}


INTERNLM = replace(
    LLAMA,
    title="InternLM",
    architectures=("InternLMForCausalLM",),
    spellings=("internlm",),
    reduce_fusion=False,
    biased=True,
    read=read,
)
