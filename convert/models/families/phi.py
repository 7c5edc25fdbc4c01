"""Phi-1, Phi-1.5, Phi-2: attention and MLP side by side behind one LayerNorm, a part of each head turned, biases
everywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..family import renamed
from ..pieces import LAYER, ROTARY, Norm
from ..rope import Rope
from .gpt2 import GPT2
from .gptj import GPTJ
from .llama import KEY, QUERY, VALUE


def read(said: Reader) -> dict[str, Any]:
    said.require("qk_layernorm", False, "TensorRT-LLM's Phi has no norms of queries and keys")
    heads = said.integer("num_attention_heads", 32)
    if said.integer("num_key_value_heads", heads) != heads:
        raise said.wrong("num_key_value_heads", f"{heads}: TensorRT-LLM's Phi shares no keys")
    return {"attn_bias": True, "mlp_bias": True}


def config(model: Any) -> dict[str, Any]:
    """The class fills in a partial_rotary_factor that nothing reads."""
    turned = {"rotary_pct": model.rotary_dim / model.head_size, "partial_rotary_factor": 0.4}
    return turned | {"rotary_base": model.rotary_base, "rotary_scaling": None}


PARTS = ((QUERY, KEY, VALUE), ("self_attn.dense",), ("mlp.fc1",), ("mlp.fc2",))
PHI = replace(
    renamed(GPTJ, *PARTS),
    title="Phi-1, Phi-1.5, Phi-2",
    architectures=("PhiForCausalLM",),
    spellings=("phi",),
    embedding="model.embed_tokens.weight",
    final_norm=Norm("ln_f", "model.final_layernorm", LAYER),
    layer="model.layers.{i}.",
    norms=(Norm("input_layernorm", "input_layernorm", LAYER),),
    linears=renamed(GPT2, *PARTS).linears,
    ignored=("self_attn.rotary_emb.inv_freq",),
    one_all_reduce=False,
    positions=ROTARY,
    rope=Rope(fraction=0.5),
    four_times=False,
    keys={"norm_epsilon": "layer_norm_eps"},
    implied=("head_size",),
    activations={"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "gelu": "gelu"},
    fixed_epsilon=True,
    read=read,
    config=config,
)
