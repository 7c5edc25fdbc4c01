"""GPT-2: LayerNorms, learned positions, one stacked and transposed qkv, no gate."""

from __future__ import annotations

from typing import Any

from ...files.reader import Reader
from ..family import Family
from ..pieces import COLUMNS, HEADS, LAYER, LEARNED, ROWS, Group, Linear, Norm, View
from .llama import config as llama_config

QUERY, KEY, VALUE = "attn.c_attn.query", "attn.c_attn.key", "attn.c_attn.value"
# What changes the attention and no engine reads, and what it must be.
FIXED = {"scale_attn_weights": True} | dict.fromkeys(
    ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"), False
)
KEYS = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "intermediate_size": "n_inner", "max_position_embeddings": "n_positions", "norm_epsilon": "layer_norm_epsilon",
    "hidden_act": "activation_function",
}  # fmt: skip


def read(said: Reader) -> dict[str, Any]:
    for key, wanted in FIXED.items():
        said.require(key, wanted, "engines compute nothing else")
    return {"attn_bias": True, "mlp_bias": True}


def config(model: Any) -> dict[str, Any]:
    absent = dict.fromkeys(("apply_query_key_layer_scaling", "inner_layernorm", "norm_before_bmm1"), False)
    rotary = {"rotary_pct": 1.0, "rotary_base": 10000.0, "rotary_scaling": None}
    variant = {"gpt_variant": "gpt2", "bias": True, "q_scaling": 1, "embedding_scale": None}
    return variant | absent | rotary | {"moe": llama_config(model)["moe"] | {"normalization_mode": 1}}


GPT2 = Family(
    title="GPT-2",
    architectures=("GPT2LMHeadModel",),
    spellings=("gpt2",),
    embedding="transformer.wte.weight",
    position_embedding="transformer.wpe.weight",
    final_norm=Norm("ln_f", "transformer.ln_f", LAYER),
    head="lm_head.weight",
    layer="transformer.h.{i}.",
    norms=(Norm("input_layernorm", "ln_1", LAYER), Norm("post_layernorm", "ln_2", LAYER)),
    linears=(
        Linear("attention.qkv", (QUERY, KEY, VALUE), HEADS, ("query_size",) * 3, "hidden_size", "attn_bias"),
        Linear("attention.dense", ("attn.c_proj",), COLUMNS, ("hidden_size",), "query_size", "attn_bias"),
        Linear("mlp.fc", ("mlp.c_fc",), ROWS, ("intermediate_size",), "hidden_size", "mlp_bias"),
        Linear("mlp.proj", ("mlp.c_proj",), COLUMNS, ("hidden_size",), "intermediate_size", "mlp_bias"),
    ),
    groups=(
        Group("attention.qkv", ("attention.qkv",), norm="input_layernorm"),
        Group("attention.dense", ("attention.dense",), feeder=VALUE),
        Group("mlp.fc", ("mlp.fc",), norm="post_layernorm"),
        Group("mlp.proj", ("mlp.proj",)),
    ),
    views={part: View("attn.c_attn", piece, True) for piece, part in enumerate((QUERY, KEY, VALUE))}
    | {part: View(part, transposed=True) for part in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")},
    ignored=(".attn.bias", ".attn.masked_bias"),
    positions=LEARNED,
    keys=KEYS,
    implied=("num_key_value_heads", "head_size"),
    defaults={"max_position_embeddings": 1024},
    activations={"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new"},
    norm_epsilon=1e-5,
    tied=True,
    biased=True,
    four_times_unsaid=True,
    read=read,
    config=config,
)
