"""MPT: ALiBi, LayerNorms without biases, no biases at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import InputError
from ...files.reader import Reader
from ..family import renamed, stacked, unbiased
from ..pieces import LAYER, Norm
from .bloom import BLOOM

MODULE = "attn.Wqkv"
QKV = [f"{MODULE}.{part}" for part in ("query", "key", "value")]


def read(said: Reader) -> dict[str, Any]:
    attention = said.section("attn_config")
    for where, key, wanted in ((said, "no_bias", True), (attention, "alibi", True), (attention, "qk_ln", False),
                               (attention, "prefix_lm", False), (attention, "rope", False),
                               (attention, "qk_gn", False)):  # fmt: skip
        where.require(key, wanted, "engines build no other MPT")
    said.choice("norm_type", ("low_precision_layernorm", "layernorm"), "low_precision_layernorm")
    for where, key in (
        (attention, "softmax_scale"),
        (said, "logit_scale"),
        (said, "ffn_config"),
        (said, "block_overrides"),
    ):
        if where.has(key):
            raise where.wrong(key, "null: engines drop it")
    if said.number("expansion_ratio", 4) != 4:
        raise InputError("config.json: expansion_ratio must be 4: engines build no other MPT")
    return stated(attention)


def config(model: Any) -> dict[str, Any]:
    return {
        "max_position_embeddings": None,
        "bias": False,
        "clip_qkv": model.clip_qkv,
        "alibi_bias_max": int(model.alibi_bias_max),
    }


def stated(said: Reader) -> dict[str, Any]:
    """What a model's attention and a checkpoint say under the same names."""
    clip = said.number_or_none("clip_qkv")
    return {"alibi_bias_max": float(said.integer("alibi_bias_max", 8)), "clip_qkv": clip}


NAMED = renamed(BLOOM, QKV, ("attn.out_proj",), ("ffn.up_proj",), ("ffn.down_proj",))
MPT = replace(
    NAMED,
    title="MPT",
    architectures=("MptForCausalLM", "MPTForCausalLM"),
    written="MPTForCausalLM",
    spellings=("mpt",),
    embedding="transformer.wte.weight",
    embedding_norm=None,
    final_norm=Norm("ln_f", "transformer.norm_f", LAYER, biased=False),
    layer="transformer.blocks.{i}.",
    norms=(
        Norm("input_layernorm", "norm_1", LAYER, biased=False),
        Norm("post_layernorm", "norm_2", LAYER, biased=False),
    ),
    linears=unbiased(NAMED.linears),
    views=stacked(MODULE, QKV),
    four_times=True,
    keys={
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "norm_epsilon": "layer_norm_epsilon",
        "max_position_embeddings": "max_seq_len",
    },
    activations={"gelu": "gelu"},
    fixed_epsilon=False,
    read=read,
    config=config,
    stated=stated,
)
