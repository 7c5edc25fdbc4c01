"""EXAONE 3: Llama under other names."""

from __future__ import annotations

from dataclasses import replace

from ..family import renamed, unbiased
from ..pieces import Norm
from .llama import LLAMA

QKV = [f"attn.attention.{part}_proj" for part in "qkv"]
GATE, UP, DOWN = "mlp.c_fc_0", "mlp.c_fc_1", "mlp.c_proj"
PARTS = (QKV, ("attn.attention.out_proj",), (GATE,), (UP,), (DOWN,))
NAMED = renamed(LLAMA, *PARTS)
EXAONE = replace(
    NAMED,
    title="EXAONE 3, 3.5",
    architectures=("ExaoneForCausalLM",),
    spellings=("exaone",),
    embedding="transformer.wte.weight",
    final_norm=Norm("ln_f", "transformer.ln_f"),
    layer="transformer.h.{i}.",
    norms=(Norm("input_layernorm", "ln_1"), Norm("post_layernorm", "ln_2")),
    linears=unbiased(NAMED.linears),
    ignored=("rotary.inv_freq",),
    keys={
        "norm_epsilon": "layer_norm_epsilon",
        "num_hidden_layers": "num_layers",
        "hidden_act": "activation_function",
        "head_size": "head_dim",
    },
    reduce_fusion=False,
    read=lambda said: {},
)
