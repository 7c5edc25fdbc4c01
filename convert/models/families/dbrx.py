"""DBRX: Mixtral's layer behind LayerNorms without biases, queries, keys and values clamped, and the same matrix of all
experts in one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..family import renamed, stacked
from ..mixture import Gate, Mixture
from ..pieces import LAYER, Norm
from .llama import DOWN, GATE, UP
from .mixtral import MIXTRAL
from .mixtral import config as mixtral_config
from .mixtral import stated as stated_mixtral

MODULE, EXPERTS = "norm_attn_norm.attn.Wqkv", "ffn.experts.mlp"
QKV = [f"{MODULE}.{part}" for part in ("query", "key", "value")]
STACKED = (f"{EXPERTS}.v1", f"{EXPERTS}.w1", f"{EXPERTS}.w2")
OWN = ("rotary_base", "rotary_scaling", "moe")


def read(said: Reader) -> dict[str, Any]:
    attention, experts = said.section("attn_config"), said.section("ffn_config")
    if experts.values.get("moe_normalize_expert_weights", 1) not in (1, 1.0):
        raise experts.wrong("moe_normalize_expert_weights", "1: engines divide by the sum")
    experts.section("ffn_act_fn").choice("name", ("silu",), "silu")
    theta = base(said, attention)
    return (
        clipped(attention)
        | theta
        | {
            "num_key_value_heads": attention.integer("kv_n_heads", 1),
            "intermediate_size": experts.integer("ffn_hidden_size", 3584),
            "moe_intermediate_size": experts.integer("ffn_hidden_size", 3584),
            "num_experts": experts.integer("moe_num_experts", 4),
            "top_k": experts.integer("moe_top_k", 1),
        }
    )


def base(said: Reader, attention: Reader) -> dict[str, Any]:
    """Where the authors state rope_theta; transformers 5 reads and writes one beside it, which must not be another."""
    if not attention.has("rope_theta"):
        return {}
    theta, other = float(attention.number("rope_theta")), said.section("rope_parameters")
    if other.has("rope_theta") and other.number("rope_theta") != theta:
        raise other.wrong("rope_theta", f"{theta:g} as in attn_config")
    return {"rotary_base": theta}


def clipped(said: Reader) -> dict[str, Any]:
    return {"clip_qkv": said.number_or_none("clip_qkv")}


def config(model: Any) -> dict[str, Any]:
    own = {key: value for key, value in mixtral_config(model).items() if key in OWN}
    return own | {"bias": False, "clip_qkv": model.clip_qkv}


NAMED = renamed(MIXTRAL, QKV, ("norm_attn_norm.attn.out_proj",), (GATE,), (UP,), (DOWN,))
DBRX = replace(
    NAMED,
    title="DBRX",
    architectures=("DbrxForCausalLM",),
    spellings=("dbrx",),
    embedding="transformer.wte.weight",
    final_norm=Norm("ln_f", "transformer.norm_f", LAYER, biased=False),
    layer="transformer.blocks.{i}.",
    norms=(
        Norm("input_layernorm", "norm_attn_norm.norm_1", LAYER, biased=False),
        Norm("post_layernorm", "norm_attn_norm.norm_2", LAYER, biased=False),
    ),
    views=stacked(MODULE, QKV),
    mixture=Mixture(
        Gate("mlp.router", "ffn.router.layer", "num_experts", exact=True),
        (f"{EXPERTS}.v1.{{e}}", f"{EXPERTS}.w1.{{e}}", f"{EXPERTS}.w2.{{e}}"),
        stacked=STACKED,
    ),
    rope_types=(),
    four_times_unsaid=True,
    keys={
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "max_seq_len",
    },
    implied=("head_size",),
    norm_epsilon=1e-5,
    defaults={"max_position_embeddings": 2048},
    stage_scatter=False,
    read=read,
    config=config,
    stated=lambda said: stated_mixtral(said) | clipped(said),
)
