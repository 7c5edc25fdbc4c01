"""Qwen1.5-MoE, Qwen2-MoE: Qwen2 with experts for an MLP, and one that every token goes through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import InputError
from ...files.reader import Reader
from ..mixture import Gate, Mixture
from .qwen2 import QWEN2
from .qwen2 import config as qwen2_config
from .qwen2 import read as read_qwen2

ROUTER = Gate("mlp.router", "mlp.gate", "num_experts", exact=True)
SHARED_GATE = Gate("mlp.shared_expert_gate", "mlp.shared_expert_gate", None)
EXPERT, SHARED = "mlp.experts.{e}", "mlp.shared_expert"


def read(said: Reader) -> dict[str, Any]:
    said.require("qkv_bias", True, "engines have biases of queries, keys and values")
    shared = said.integer("shared_expert_intermediate_size", 5632)
    return read_qwen2(said) | experts(said) | {"shared_expert_intermediate_size": shared}


def experts(said: Reader, usual: int = 60) -> dict[str, Any]:
    """What all of Qwen's mixtures say; usual: how many experts transformers takes."""
    if said.integer("decoder_sparse_step", 1) != 1 or said.values.get("mlp_only_layers"):
        raise InputError(
            "config.json: decoder_sparse_step must be 1, mlp_only_layers empty: engines have experts in each"
        )
    return {
        "num_experts": said.integer("num_experts", said.integer("num_local_experts", usual)),
        "top_k": said.integer("num_experts_per_tok", 4),
        "normalizes_experts": said.flag("norm_topk_prob"),
        "moe_intermediate_size": said.integer("moe_intermediate_size", 1408),
    }


def stated(said: Reader) -> dict[str, Any]:
    moe = said.section("moe")
    return {
        "num_experts": moe.integer("num_experts"),
        "top_k": moe.integer("top_k"),
        "normalizes_experts": moe.integer("normalization_mode", 0, least=0) == 1,
        "moe_intermediate_size": said.integer("moe_intermediate_size"),
        "shared_expert_intermediate_size": said.integer("moe_shared_expert_intermediate_size", 0, least=0),
    }


def config(model: Any) -> dict[str, Any]:
    """Experts' weights are normalized where the model's are: upstream's converter always writes that they are not."""
    own = qwen2_config(model)
    moe = {
        "num_experts": model.num_experts,
        "top_k": model.top_k,
        "normalization_mode": int(model.normalizes_experts),
        "shared_expert_intermediate_size": model.shared_expert_intermediate_size,
    }
    return own | {
        "moe": own["moe"] | moe,
        "qwen_type": "qwen2_moe",
        "moe_intermediate_size": model.moe_intermediate_size,
        "moe_shared_expert_intermediate_size": model.shared_expert_intermediate_size,
    }


QWEN2_MOE = replace(
    QWEN2,
    title="Qwen1.5-MoE, Qwen2-MoE",
    architectures=("Qwen2MoeForCausalLM",),
    spellings=("qwen2_moe",),
    mixture=Mixture(
        ROUTER,
        (f"{EXPERT}.up_proj", f"{EXPERT}.gate_proj", f"{EXPERT}.down_proj"),
        (f"{SHARED}.up_proj", f"{SHARED}.gate_proj", f"{SHARED}.down_proj"),
        SHARED_GATE,
    ),
    activations={"silu": "swiglu"},
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 16},
    read=read,
    config=config,
    stated=stated,
)
