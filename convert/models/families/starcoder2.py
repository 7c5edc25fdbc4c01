"""StarCoder2: LayerNorms, rotary positions, shared keys, biases everywhere, no gate."""

from __future__ import annotations

from typing import Any

from ...errors import InputError
from ...files.reader import Reader
from ..family import COLUMNS, HEADS, LAYER, ROWS, Family, Group, Linear, Norm
from .gpt2 import NO_LAYER_NORM, QSERVE
from .gpt2 import config as gpt_config
from .llama import KEY, QUERY, VALUE


def read(said: Reader) -> dict[str, Any]:
    if not said.flag("use_bias", True):
        raise InputError("config.json: use_bias must be true: engines have LayerNorms with biases")
    window = said.integer("sliding_window") if said.has("sliding_window") else None
    return {"attn_bias": True, "mlp_bias": True, "sliding_window": window}


def config(model: Any) -> dict[str, Any]:
    rotary = {"rotary_base": model.rotary_base, "rotary_scaling": model.rotary_scaling}
    return gpt_config(model) | {"gpt_variant": "starcoder2"} | rotary


STARCODER2 = Family(
    architectures=("Starcoder2ForCausalLM",),
    spellings=("starcoder2",),
    embedding="model.embed_tokens.weight",
    final_norm=Norm("ln_f", "model.norm", LAYER),
    head="lm_head.weight",
    layer="model.layers.{i}.",
    norms=(
        Norm("input_layernorm", "input_layernorm", LAYER),
        Norm("post_layernorm", "post_attention_layernorm", LAYER),
    ),
    linears=(
        Linear(
            "attention.qkv",
            (QUERY, KEY, VALUE),
            HEADS,
            ("query_size", "kv_size", "kv_size"),
            "hidden_size",
            "attn_bias",
        ),
        Linear("attention.dense", ("self_attn.o_proj",), COLUMNS, ("hidden_size",), "query_size", "attn_bias"),
        Linear("mlp.fc", ("mlp.c_fc",), ROWS, ("intermediate_size",), "hidden_size", "mlp_bias"),
        Linear("mlp.proj", ("mlp.c_proj",), COLUMNS, ("hidden_size",), "intermediate_size", "mlp_bias"),
    ),
    groups=(
        Group("attention.qkv", ("attention.qkv",), norm="input_layernorm"),
        Group("attention.dense", ("attention.dense",), feeder=VALUE),
        Group("mlp.fc", ("mlp.fc",), norm="post_layernorm"),
        Group("mlp.proj", ("mlp.proj",)),
    ),
    ignored=("rotary_emb.inv_freq", "self_attn.rotary_emb.inv_freq"),
    keys={"norm_epsilon": "norm_epsilon", "head_size": "head_dim"},
    defaults={"max_position_embeddings": 4096, "num_key_value_heads": 2},
    activations={"gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"},
    norm_epsilon=1e-5,
    tied=True,
    read=read,
    config=config,
    refused=dict.fromkeys(("FP8_PER_CHANNEL_PER_TOKEN", *QSERVE), NO_LAYER_NORM),
)
