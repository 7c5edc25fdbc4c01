"""Phi-3, Phi-3.5, Phi-4: Llama with one module for queries, keys and values, and one for gate and up, of which the
engine has one matrix, up first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..family import Family, stacked, unbiased
from ..pieces import ROWS, Group, Linear
from .llama import GATE, KEY, LLAMA, QUERY, UP, VALUE

LORA = "its MLP does not take what the layer hands it; use W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN, FP8 or W4A16_AWQ"
PARTIAL = "partial_rotary_factor"


def fused(family: Family) -> Family:
    """A family whose gate and up are one matrix, up first."""
    qkv, dense, gate, up, proj = family.linears
    fc = Linear("mlp.fc", (*up.parts, *gate.parts), ROWS, ("intermediate_size",) * 2, "hidden_size", gate.bias)
    first, second, _, last = family.groups
    groups = (first, second, Group("mlp.fc", ("mlp.fc",), norm="post_layernorm"), last)
    return replace(family, linears=(qkv, dense, fc, proj), groups=groups, activated=gate.parts[0])


def turned(said: Reader) -> float:
    """The part of each head that is turned, of a model's config.json or a checkpoint's."""
    section = said.section("rope_parameters")
    return (section if section.has(PARTIAL) else said).number(PARTIAL, said.number("rotary_pct", 1.0))


def read(said: Reader) -> dict[str, Any]:
    return {"sliding_window": said.integer_or_none("sliding_window")}


def config(model: Any) -> dict[str, Any]:
    own = {"rotary_base": model.rotary_base, "rotary_scaling": None}
    scaling = model.rotary_scaling
    if scaling is not None:
        own |= {
            "position_embedding_type": "long_rope",
            "original_max_position_embeddings": scaling["original_max_position_embeddings"],
            "longrope_scaling_short_factors": scaling["short_factor"],
            "longrope_scaling_long_factors": scaling["long_factor"],
        }
    return own


FUSED = fused(LLAMA)
PHI3 = replace(
    FUSED,
    title="Phi-3, Phi-3.5, Phi-4",
    architectures=("Phi3ForCausalLM",),
    spellings=("phi3",),
    when=lambda said: turned(said) == 1,
    linears=unbiased(FUSED.linears),
    views=stacked("self_attn.qkv_proj", (QUERY, KEY, VALUE)) | stacked("mlp.gate_up_proj", (GATE, UP)),
    pipelined=False,
    rope_types=("longrope",),
    defaults={"max_position_embeddings": 4096},
    activations={"silu": "swiglu"},
    norm_epsilon=1e-5,
    reduce_fusion=False,
    read=read,
    config=config,
    refused=dict.fromkeys(("W4A8_QSERVE_PER_GROUP", "W4A8_QSERVE_PER_CHANNEL"), LORA),
)
PHI4_MINI = replace(
    PHI3,
    title="Phi-4-mini",
    when=lambda said: turned(said) < 1,
    partly_turned=True,
    since="0.19.0",
    config=lambda model: config(model) | {"rotary_pct": model.rotary_dim / model.head_size},
)
