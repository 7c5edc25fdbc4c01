"""ChatGLM2, ChatGLM3, GLM-4 (their authors' code): Phi-3's matrices under other names, half of each head turned,
neighbouring channels together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import InputError
from ...files.reader import Reader
from ..family import Family, renamed, stacked
from ..pieces import INTERLEAVED, Norm
from .llama import LLAMA
from .phi3 import fused

MODULE, MLP = "self_attention.query_key_value", "mlp.dense_h_to_4h"
QKV = [f"{MODULE}.{part}" for part in ("query", "key", "value")]
GATE, UP = (f"{MLP}.{part}" for part in ("gate", "up"))
NAMED = renamed(LLAMA, QKV, ("self_attention.dense",), (GATE,), (UP,), ("mlp.dense_4h_to_h",))
FUSED = fused(replace(NAMED, linears=(NAMED.linears[0], *(replace(one, bias="mlp_bias") for one in NAMED.linears[1:]))))
FIXED = {"rmsnorm": True, "post_layer_norm": True, "apply_residual_connection_post_layernorm": False}
VERSIONS = ("chatglm2", "chatglm3", "glm4")


def read(said: Reader) -> dict[str, Any]:
    for key, wanted in FIXED.items():
        said.require(key, wanted, "engines build no other ChatGLM")
    if said.values.get("pre_seq_len") or said.values.get("interleaved_qkv"):
        raise InputError("config.json: pre_seq_len and interleaved_qkv must be null: engines build no other ChatGLM")
    heads = said.integer("num_attention_heads", 32)
    groups = said.integer("multi_query_group_num", 1) if said.flag("multi_query_attention") else heads
    ratio = said.number("rope_ratio", 1.0)
    scaling = {"rope_type": "linear", "factor": ratio} if version(said) == "chatglm2" and ratio > 1 else None
    return {
        "num_key_value_heads": groups,
        "rotary_base": 1e4 if scaling else 1e4 * ratio,
        "rotary_scaling": scaling,
        "rotary_dim": said.integer("kv_channels", said.integer("hidden_size", 4096) // heads) // 2,
        "attn_bias": said.flag("add_qkv_bias"),
        "mlp_bias": said.flag("add_bias_linear"),
    }


def version(said: Reader) -> str:
    """TensorRT-LLM's name; of a class that two have, config.json must say where they differ."""
    if not said.has("chatglm_version") and said.values.get("architectures") == ["ChatGLMModel"]:
        if said.number("rope_ratio", 1.0) != 1:
            raise said.wrong(
                "chatglm_version", "chatglm2 or chatglm3, which read rope_ratio each in its own way; add it"
            )
        return "chatglm3"
    return said.choice("chatglm_version", VERSIONS, "glm4")


def stated(said: Reader) -> dict[str, Any]:
    return {"attn_bias": said.flag("add_qkv_bias", True), "mlp_bias": said.flag("add_bias_linear")}


def config_of(name: str) -> Any:
    def config(model: Any) -> dict[str, Any]:
        return {
            "chatglm_version": name if model.rotary_scaling is None else "chatglm2",
            "add_bias_linear": model.mlp_bias,
            "add_qkv_bias": model.attn_bias,
            "apply_query_key_layer_scaling": False,
            "apply_residual_connection_post_layernorm": False,
            "rmsnorm": True,
            "rotary_pct": model.rotary_dim / model.head_size,
            "rotary_base": model.rotary_base,
            "rotary_scaling": model.rotary_scaling,
            "rotary_embedding_dim": model.head_size,
        }

    return config


CHATGLM3 = replace(
    FUSED,
    title="ChatGLM2, ChatGLM3",
    architectures=("ChatGLMModel",),
    spellings=("chatglm",),
    embedding="transformer.embedding.word_embeddings.weight",
    final_norm=Norm("ln_f", "transformer.encoder.final_layernorm"),
    head="transformer.output_layer.weight",
    layer="transformer.encoder.layers.{i}.",
    views=stacked(MODULE, QKV) | stacked(MLP, (GATE, UP)),
    ignored=("rotary_pos_emb.inv_freq",),
    positions=INTERLEAVED,
    partly_turned=True,
    pipelined=False,
    rope_types=("linear",),
    keys={
        "num_hidden_layers": "num_layers",
        "vocab_size": "padded_vocab_size",
        "intermediate_size": "ffn_hidden_size",
        "norm_epsilon": "layernorm_epsilon",
        "max_position_embeddings": "seq_length",
        "head_size": "kv_channels",
    },
    defaults={"max_position_embeddings": 2048},
    activations={"silu": "swiglu"},
    norm_epsilon=1e-5,
    reduce_fusion=False,
    read=read,
    config=config_of("chatglm3"),
    stated=stated,
)
GLM4 = replace(CHATGLM3, title="GLM-4", architectures=("ChatGLMForCausalLM",), spellings=(), config=config_of("glm4"))
CHATGLM: tuple[Family, ...] = (CHATGLM3, GLM4)
