"""Qwen2 and Qwen2.5: Llama's tensors, with biases on queries, keys and values alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import InputError
from ...files.reader import Reader
from .llama import LLAMA
from .llama import config as llama_config

# The engine's layer hands these formats' attention an argument that it does not take: no such network can be built.
NO_ARGUMENT = ("FP8_PER_CHANNEL_PER_TOKEN", "W4A8_QSERVE_PER_GROUP", "W4A8_QSERVE_PER_CHANNEL")
REFUSED = "TensorRT-LLM cannot build Qwen's attention in it"
OWN = ("mlp_bias", "attn_bias", "rotary_base", "rotary_scaling", "disable_weight_only_quant_plugin", "moe")


def read(said: Reader) -> dict[str, Any]:
    """Windows, where config.json asks for them, are on the layers from max_window_layers upwards."""
    kinds = said.texts("layer_types")
    some = said.integer("max_window_layers", 28, least=0) < said.integer("num_hidden_layers", 32)
    if any(kind != "full_attention" for kind in kinds) or (said.flag("use_sliding_window") and some and not kinds):
        raise InputError("config.json: windows on some layers are not supported; set use_sliding_window false")
    return {"attn_bias": True}


def config(model: Any) -> dict[str, Any]:
    shared = {key: value for key, value in llama_config(model).items() if key in OWN}
    shared["moe"] = shared["moe"] | {"normalization_mode": 0}
    return shared | {
        "num_labels": 1,
        "qwen_type": "qwen2",
        "moe_intermediate_size": 0,
        "moe_shared_expert_intermediate_size": 0,
        "tie_word_embeddings": model.tied,
    }


QKV, DENSE, *MLP = LLAMA.linears
QWEN2 = replace(
    LLAMA,
    title="Qwen2, Qwen2.5",
    architectures=("Qwen2ForCausalLM",),
    spellings=("qwen2",),
    linears=(QKV, *(replace(linear, bias=None) for linear in (DENSE, *MLP))),
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32},
    reduce_fusion=False,
    biased=True,
    read=read,
    config=config,
    refused=dict.fromkeys(NO_ARGUMENT, REFUSED),
)
