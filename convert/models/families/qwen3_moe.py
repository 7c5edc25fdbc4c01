"""Qwen3-MoE: Qwen3's attention, Qwen2-MoE's experts without a shared one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..mixture import Mixture
from .qwen2_moe import QWEN2_MOE, experts
from .qwen2_moe import config as moe_config
from .qwen3 import QWEN3
from .qwen3 import config as qwen3_config
from .qwen3 import read as read_qwen3


def read(said: Reader) -> dict[str, Any]:
    usual = {"num_experts_per_tok": 8, "moe_intermediate_size": 768}
    return read_qwen3(said) | experts(Reader(usual | said.values), usual=128)


def config(model: Any) -> dict[str, Any]:
    return (
        moe_config(model)
        | {key: qwen3_config(model)[key] for key in ("seq_length", "use_logn_attn")}
        | {"qwen_type": "qwen3_moe"}
    )


QWEN3_MOE = replace(
    QWEN3,
    title="Qwen3-MoE",
    architectures=("Qwen3MoeForCausalLM",),
    spellings=("qwen3_moe",),
    mixture=Mixture(QWEN2_MOE.mixture.router, QWEN2_MOE.mixture.expert) if QWEN2_MOE.mixture else None,
    activations=QWEN2_MOE.activations,
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 4},
    read=read,
    config=config,
    stated=QWEN2_MOE.stated,
)
