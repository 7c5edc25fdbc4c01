"""Falcon: attention and MLP side by side, behind two LayerNorms (40B, 180B) or one (7B, 11B); RW, one behind the other
with scaled ALiBi. Queries, keys and values in one module, grouped by heads of keys in all three."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..family import behind, renamed
from ..pieces import LAYER, PARALLEL, ROTARY, SCALED_ALIBI, Norm
from .bloom import BLOOM
from .gptj import GPTJ

TWO, ONE, SEQUENTIAL = 2, 1, 0


def norms(said: Reader) -> int:
    """LayerNorms that read a layer's input, in a config.json of a model or a checkpoint; none where one half reads what
    the other has made."""
    if said.flag("new_decoder_architecture"):
        return said.integer("num_ln_in_parallel_attn", TWO, largest=TWO)
    return (
        ONE if said.flag("parallel_attn", said.flag("parallel_attention", not said.has("architecture"))) else SEQUENTIAL
    )


def read_with(count: int) -> Callable[[Reader], dict[str, Any]]:
    """What a config.json says of a Falcon with so many LayerNorms before a layer."""

    def read(said: Reader) -> dict[str, Any]:
        if said.flag("alibi") != (count == SEQUENTIAL):
            raise said.wrong("alibi", f"{str(count == SEQUENTIAL).lower()} with such layers: no such Falcon is known")
        heads = said.integer("num_attention_heads", said.integer("n_head", 71))
        if said.flag("new_decoder_architecture"):
            heads = said.integer("num_kv_heads", said.integer("n_head_kv", heads))
        elif said.flag("multi_query", True):
            heads = 1
        biased = said.flag("bias")
        return {"num_key_value_heads": heads, "attn_bias": biased, "mlp_bias": biased}

    return read


def config_with(count: int) -> Callable[[Any], dict[str, Any]]:
    def config(model: Any) -> dict[str, Any]:
        return {
            "bias": model.attn_bias,
            "parallel_attention": count > SEQUENTIAL,
            "num_ln_in_parallel_attn": count if count > SEQUENTIAL else None,
            "new_decoder_architecture": count == TWO or (count == ONE and model.num_key_value_heads > 1),
            "rotary_base": model.rotary_base,
        }

    return config


QKV, *REST = BLOOM.linears
RW = replace(
    BLOOM,
    title="Falcon RW",
    architectures=("FalconForCausalLM", "RWForCausalLM"),
    written="FalconForCausalLM",
    spellings=("falcon", "RefinedWeb", "RefinedWebModel"),
    when=lambda said: norms(said) == SEQUENTIAL,
    embedding_norm=None,
    linears=(replace(QKV, out_features=("query_size", "kv_size", "kv_size")), *REST),
    positions=SCALED_ALIBI,
    pipelined=True,
    biased=False,
    fixed_epsilon=True,
    keys={"intermediate_size": "ffn_hidden_size", "norm_epsilon": "layer_norm_epsilon", "hidden_act": "activation"},
    implied=("head_size",),
    activations={"gelu": "gelu"},
    read=read_with(SEQUENTIAL),
    config=config_with(SEQUENTIAL),
)
NAMED = renamed(GPTJ, *(linear.parts for linear in BLOOM.linears))
FALCON_7B = replace(
    RW,
    title="Falcon 7B, 11B",
    when=lambda said: norms(said) == ONE,
    norms=(Norm("input_layernorm", "input_layernorm", LAYER),),
    arrangement=PARALLEL,
    one_all_reduce=True,
    groups=NAMED.groups,
    positions=ROTARY,
    rope_types=(),
    four_times=False,
    read=read_with(ONE),
    config=config_with(ONE),
)
FALCON_40B = replace(
    FALCON_7B,
    title="Falcon 40B, 180B",
    when=lambda said: norms(said) == TWO,
    norms=(Norm("input_layernorm", "ln_attn", LAYER), Norm("mlp_layernorm", "ln_mlp", LAYER)),
    groups=behind(BLOOM.groups, {"post_layernorm": "mlp_layernorm"}),
    read=read_with(TWO),
    config=config_with(TWO),
)
FALCON = (FALCON_7B, FALCON_40B, RW)
