"""GPT-J: attention and MLP side by side behind one LayerNorm; neighbouring channels turned; biases in the MLP alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..family import renamed, unbiased
from ..pieces import INTERLEAVED, LAYER, PARALLEL, Group, Norm
from .gpt2 import GPT2, KEYS

QUERY, KEY, VALUE = "attn.q_proj", "attn.k_proj", "attn.v_proj"


def read(said: Reader) -> dict[str, Any]:
    turned = {"rotary_dim": said.integer("rotary_dim", 64)} if said.values.get("rotary_dim", 64) else {}
    return turned | {"mlp_bias": True}


def config(model: Any) -> dict[str, Any]:
    return {"rotary_dim": model.rotary_dim, "rotary_embedding_dim": model.head_size}


NAMED = renamed(GPT2, (QUERY, KEY, VALUE), ("attn.out_proj",), ("mlp.fc_in",), ("mlp.fc_out",))
GPTJ = replace(
    NAMED,
    title="GPT-J",
    architectures=("GPTJForCausalLM",),
    spellings=("gptj",),
    position_embedding=None,
    head_bias="lm_head.bias",
    arrangement=PARALLEL,
    norms=(Norm("input_layernorm", "ln_1", LAYER),),
    linears=(*unbiased(NAMED.linears[:2]), *NAMED.linears[2:]),
    groups=(
        Group("attention.qkv+mlp.fc", ("attention.qkv", "mlp.fc"), norm="input_layernorm"),
        Group("attention.dense", ("attention.dense",), feeder=VALUE),
        Group("mlp.proj", ("mlp.proj",)),
    ),
    ignored=(".attn.bias", ".attn.masked_bias"),
    one_all_reduce=True,
    pipelined=False,
    positions=INTERLEAVED,
    partly_turned=True,
    rope_types=(),
    four_times=True,
    keys=KEYS,
    defaults={"max_position_embeddings": 2048},
    activations=dict.fromkeys(("gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh"), "gelu"),
    tied=False,
    fixed_epsilon=True,
    read=read,
    config=config,
)
