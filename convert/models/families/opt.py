"""OPT: LayerNorms, learned positions of which the first two mean padding, a separate projection of each kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import InputError
from ...files.reader import Reader
from ..family import renamed
from ..pieces import LAYER, Norm
from .gpt2 import GPT2
from .llama import KEY, QUERY, VALUE

# What OPT-350m and Galactica are otherwise, and what it must be.
FIXED = {
    "do_layer_norm_before": True, "_remove_final_layer_norm": False, "enable_bias": True,
    "layer_norm_elementwise_affine": True,
}  # fmt: skip
PER_TOKEN = ("W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN")
STATIC = "TensorRT-LLM cannot build OPT's layer in it; use W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN"


def read(said: Reader) -> dict[str, Any]:
    for key, wanted in FIXED.items():
        said.require(key, wanted, "engines build no other OPT")
    hidden = said.integer("hidden_size", 768)
    if said.integer("word_embed_proj_dim", hidden) != hidden:
        raise InputError(f"config.json: word_embed_proj_dim must be hidden_size {hidden}, as in all OPTs but 350m")
    return {"attn_bias": True, "mlp_bias": True}


def config(model: Any) -> dict[str, Any]:
    return {"do_layer_norm_before": True}


OPT = replace(
    renamed(GPT2, (QUERY, KEY, VALUE), ("self_attn.out_proj",), ("fc1",), ("fc2",)),
    title="OPT",
    architectures=("OPTForCausalLM",),
    spellings=("opt",),
    embedding="model.decoder.embed_tokens.weight",
    position_embedding="model.decoder.embed_positions.weight",
    first_position=2,
    final_norm=Norm("ln_f", "model.decoder.final_layer_norm", LAYER),
    layer="model.decoder.layers.{i}.",
    norms=(
        Norm("input_layernorm", "self_attn_layer_norm", LAYER),
        Norm("post_layernorm", "final_layer_norm", LAYER),
    ),
    ignored=(),
    pipelined=False,
    keys={"intermediate_size": "ffn_dim", "hidden_act": "activation_function"},
    defaults={"max_position_embeddings": 2048},
    activations={"relu": "relu", "gelu": "gelu"},
    fixed_epsilon=True,
    read=read,
    config=config,
    refused=dict.fromkeys(PER_TOKEN, STATIC),
)
