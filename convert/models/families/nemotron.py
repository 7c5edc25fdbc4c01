"""Nemotron-4, Minitron: LayerNorms that store how far they are from 1, half of each head turned, squared ReLU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..rope import Rope
from .gpt2 import config as gpt_config
from .llama import DOWN, UP
from .starcoder2 import STARCODER2


def read(said: Reader) -> dict[str, Any]:
    biased = said.flag("attention_bias")
    if said.flag("mlp_bias") != biased:
        raise said.wrong("mlp_bias", f"{str(biased).lower()} as attention_bias: engines have one flag for both")
    return {"attn_bias": biased, "mlp_bias": biased}


def config(model: Any) -> dict[str, Any]:
    """The class turns a part of a head, though it states the whole."""
    turned = {"rotary_pct": model.rotary_dim / model.head_size, "rotary_base": model.rotary_base}
    variant = {"gpt_variant": "nemotron", "bias": model.attn_bias, "rotary_embedding_dim": model.head_size}
    return gpt_config(model) | turned | variant


*ATTENTION, FC, PROJ = STARCODER2.linears
NEMOTRON = replace(
    STARCODER2,
    title="Nemotron, Minitron",
    architectures=("NemotronForCausalLM",),
    spellings=("nemotron",),
    linears=(*ATTENTION, replace(FC, parts=(UP,)), replace(PROJ, parts=(DOWN,))),
    norm_offset=1.0,
    partly_turned=True,
    rope_types=(),
    rope=Rope(fraction=0.5),
    keys={"norm_epsilon": "norm_eps", "head_size": "head_dim"},
    defaults={"max_position_embeddings": 4096},
    activations={"relu2": "squared-relu"},
    tied=False,
    biased=False,
    read=read,
    config=config,
)
