"""Gemma: norms that store how far they are from 1, a scaled embedding that is the output projection too."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ...errors import InputError
from ...files.reader import Reader
from .llama import LLAMA
from .llama import config as llama_config

OWN = ("rotary_base", "rotary_scaling", "attn_bias", "mlp_bias")
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_pytorch_tanh", "gelu": "gelu_pytorch_tanh"}


def read(said: Reader) -> dict[str, Any]:
    """transformers computes the tanh GELU whatever an old hidden_act says; the engine has no other rope_theta."""
    section = said.section("rope_parameters")
    if (section if section.has("rope_theta") else said).number("rope_theta", 1e4) != 1e4:
        raise InputError("config.json: rope_theta must be 10000: TensorRT-LLM's Gemma reads no other")
    return read_any(said) | {"activation": "gelu_pytorch_tanh"}


def read_any(said: Reader) -> dict[str, Any]:
    """What all Gemmas say."""
    said.require("attention_bias", False, "TensorRT-LLM's Gemma has no biases")
    said.require("use_bidirectional_attention", False, "engines attend to tokens before")
    return stated(said)


def stated(said: Reader) -> dict[str, Any]:
    return {"embedding_scale": math.sqrt(said.integer("hidden_size", 3072))}


def config(model: Any) -> dict[str, Any]:
    own = {key: value for key, value in llama_config(model).items() if key in OWN}
    return own | {"inter_layernorms": False}


GEMMA = replace(
    LLAMA,
    title="Gemma",
    architectures=("GemmaForCausalLM",),
    spellings=("gemma",),
    norm_offset=1.0,
    shares_embedding=True,
    pipelined=False,
    defaults={"max_position_embeddings": 8192, "num_key_value_heads": 16, "head_size": 256},
    activations=ACTIVATIONS,
    rope_types=(),
    tied=True,
    reduce_fusion=False,
    read=read,
    config=config,
    stated=stated,
)
