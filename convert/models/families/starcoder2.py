"""StarCoder2: LayerNorms, rotary positions, shared keys, biases everywhere, no gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..pieces import LAYER
from .gpt2 import GPT2
from .gpt2 import config as gpt_config
from .llama import LLAMA


def read(said: Reader) -> dict[str, Any]:
    said.require("use_bias", True, "engines have LayerNorms with biases")
    window = said.integer_or_none("sliding_window")
    return {"attn_bias": True, "mlp_bias": True, "sliding_window": window}


def config(model: Any) -> dict[str, Any]:
    rotary = {"rotary_base": model.rotary_base, "rotary_scaling": model.rotary_scaling}
    return gpt_config(model) | {"gpt_variant": "starcoder2"} | rotary


QKV, DENSE, *_ = LLAMA.linears
FC, PROJ = GPT2.linears[2:]
STARCODER2 = replace(
    LLAMA,
    title="StarCoder2",
    architectures=("Starcoder2ForCausalLM",),
    spellings=("starcoder2",),
    final_norm=replace(LLAMA.last_norm, kind=LAYER),
    norms=tuple(replace(norm, kind=LAYER) for norm in LLAMA.norms),
    linears=(QKV, DENSE, FC, PROJ),
    groups=(*LLAMA.groups[:2], *GPT2.groups[2:]),
    keys={"norm_epsilon": "norm_epsilon", "head_size": "head_dim"},
    defaults={"max_position_embeddings": 4096, "num_key_value_heads": 2},
    activations={"gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"},
    norm_epsilon=1e-5,
    tied=True,
    biased=True,
    reduce_fusion=False,
    read=read,
    config=config,
)
