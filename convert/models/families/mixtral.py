"""Mixtral: Mistral with eight experts for an MLP, of which a token goes through two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import InputError
from ...files.reader import Reader
from ..mixture import Gate, Mixture
from .llama import config as llama_config
from .mistral import MISTRAL

MODULE = "block_sparse_moe"
ROUTER = Gate("mlp.router", f"{MODULE}.gate", "num_experts", exact=True)
EXPERT = f"{MODULE}.experts.{{e}}"


def read(said: Reader) -> dict[str, Any]:
    if said.values.get("router_jitter_noise"):
        raise InputError("config.json: router_jitter_noise must be 0: engines add none")
    window = said.integer_or_none("sliding_window")
    experts = {"num_experts": said.integer("num_local_experts", 8), "top_k": said.integer("num_experts_per_tok", 2)}
    return experts | {"moe_intermediate_size": said.integer("intermediate_size", 14336), "sliding_window": window}


def stated(said: Reader) -> dict[str, Any]:
    moe = said.section("moe")
    experts = {"num_experts": moe.integer("num_experts"), "top_k": moe.integer("top_k")}
    return experts | {"moe_intermediate_size": said.integer("intermediate_size")}


def config(model: Any) -> dict[str, Any]:
    own = llama_config(model)
    return own | {"moe": own["moe"] | {"num_experts": model.num_experts, "top_k": model.top_k, "normalization_mode": 1}}


MIXTRAL = replace(
    MISTRAL,
    title="Mixtral",
    architectures=("MixtralForCausalLM",),
    spellings=("mixtral",),
    mixture=Mixture(ROUTER, (f"{EXPERT}.w3", f"{EXPERT}.w1", f"{EXPERT}.w2")),
    rope=replace(MISTRAL.rope, theta=1e6),
    norm_epsilon=1e-5,
    activations={"silu": "swiglu"},
    stage_scatter=True,
    read=read,
    config=config,
    stated=stated,
)
