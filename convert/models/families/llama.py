"""Llama, and everything that is its like under its name (Yi, DeepSeek-LLM, SmolLM, ...)."""

from __future__ import annotations

from typing import Any

from ...files.reader import Reader
from ..family import Family
from ..pieces import COLUMNS, HEADS, ROWS, Group, Linear, Norm

QUERY, KEY, VALUE = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
GATE, UP, DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"


def read(said: Reader) -> dict[str, Any]:
    """Llama's attention reads no window, whatever config.json says."""
    return {"attn_bias": said.flag("attention_bias", said.flag("bias")), "mlp_bias": said.flag("mlp_bias")}


def config(model: Any) -> dict[str, Any]:
    return {
        "mlp_bias": model.mlp_bias,
        "attn_bias": model.attn_bias,
        "rotary_base": model.rotary_base,
        "rotary_scaling": model.rotary_scaling,
        "residual_mlp": False,
        "disable_weight_only_quant_plugin": False,
        "moe": {
            "num_experts": 0,
            "shared_expert_intermediate_size": 0,
            "top_k": 0,
            "normalization_mode": None,
            "sparse_mixer_epsilon": 0.01,
            "tp_mode": 0,
            "device_limited_n_group": 0,
            "device_limited_topk_group": 0,
            "device_limited_routed_scaling_factor": 1.0,
        },
        "remove_duplicated_kv_heads": False,
        "fc_after_embed": False,
        "use_input_layernorm_in_first_layer": True,
        "use_last_layernorm": True,
        "layer_idx_offset": 0,
    }


LLAMA = Family(
    title="Llama, Yi, DeepSeek-LLM, SmolLM",
    architectures=("LlamaForCausalLM",),
    spellings=("LLaMAForCausalLM", "llama"),
    embedding="model.embed_tokens.weight",
    final_norm=Norm("ln_f", "model.norm"),
    head="lm_head.weight",
    layer="model.layers.{i}.",
    norms=(Norm("input_layernorm", "input_layernorm"), Norm("post_layernorm", "post_attention_layernorm")),
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
        Linear("mlp.fc", (GATE,), ROWS, ("intermediate_size",), "hidden_size", "mlp_bias"),
        Linear("mlp.gate", (UP,), ROWS, ("intermediate_size",), "hidden_size", "mlp_bias"),
        Linear("mlp.proj", (DOWN,), COLUMNS, ("hidden_size",), "intermediate_size", "mlp_bias"),
    ),
    groups=(
        Group("attention.qkv", ("attention.qkv",), norm="input_layernorm"),
        Group("attention.dense", ("attention.dense",), feeder=VALUE),
        Group("mlp.fc+gate", ("mlp.fc", "mlp.gate"), norm="post_layernorm"),
        Group("mlp.proj", ("mlp.proj",), feeder=UP),
    ),
    ignored=("rotary_emb.inv_freq", "self_attn.rotary_emb.inv_freq"),
    defaults={"max_position_embeddings": 2048},
    reduce_fusion=True,
    read=read,
    config=config,
)
