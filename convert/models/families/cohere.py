"""Cohere's Command R, R+: Llama's matrices side by side behind one LayerNorm, neighbouring channels turned, logits
scaled; R+ with norms of each head's query and key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..family import Family
from ..pieces import INTERLEAVED, LAYER, PARALLEL, Group, Norm
from .llama import LLAMA, UP, VALUE


def normed(said: Reader) -> bool:
    """Whether queries and keys have norms, by a model's config.json or a checkpoint's."""
    return said.flag("use_qk_norm", said.flag("qk_layernorm"))


def read(said: Reader) -> dict[str, Any]:
    if not said.has("rope_theta") and not said.section("rope_parameters").has("rope_theta"):
        raise said.wrong("rope_theta", "stated: transformers 4 takes 10000 where it is not, transformers 5 500000")
    return {"attn_bias": said.flag("attention_bias"), "logit_scale": said.number("logit_scale", 0.0625)}


def stated(said: Reader) -> dict[str, Any]:
    return {"logit_scale": said.number("output_multiplier_scale", 0.0625)}


def config(model: Any) -> dict[str, Any]:
    return {
        "output_multiplier_scale": model.logit_scale,
        "rotary_base": model.rotary_base,
        "attn_bias": model.attn_bias,
        "use_parallel_embedding": model.tied,
        "qk_layernorm": model.family.query_key_norms is not None,
    }


def head_norm(name: str, tensor: str, rows: str) -> Norm:
    return Norm(f"attention.{name}", f"self_attn.{tensor}", LAYER, biased=False, size="head_size", rows=rows)


QKV, DENSE, *MLP = LLAMA.linears
COMMAND_R = replace(
    LLAMA,
    title="Cohere Command R",
    architectures=("CohereForCausalLM",),
    spellings=("cohere",),
    when=lambda said: not normed(said),
    arrangement=PARALLEL,
    final_norm=Norm("ln_f", "model.norm", LAYER, biased=False),
    norms=(Norm("input_layernorm", "input_layernorm", LAYER, biased=False),),
    linears=(QKV, DENSE, *(replace(linear, bias=None) for linear in MLP)),
    groups=(
        Group("attention.qkv+mlp.fc+gate", ("attention.qkv", "mlp.fc", "mlp.gate"), norm="input_layernorm"),
        Group("attention.dense", ("attention.dense",), feeder=VALUE),
        Group("mlp.proj", ("mlp.proj",), feeder=UP),
    ),
    positions=INTERLEAVED,
    rope_types=(),
    shares_embedding=True,
    cuts_embedding=True,
    keys={"norm_epsilon": "layer_norm_eps", "head_size": "head_dim"},
    defaults={"max_position_embeddings": 8192},
    norm_epsilon=1e-5,
    tied=True,
    reduce_fusion=False,
    read=read,
    config=config,
    stated=stated,
)
COMMAND_R_PLUS = replace(
    COMMAND_R,
    title="Cohere Command R+",
    when=normed,
    query_key_norms=(
        head_norm("q_layernorm", "q_norm", "num_attention_heads"),
        head_norm("k_layernorm", "k_norm", "num_key_value_heads"),
    ),
)
COHERE: tuple[Family, ...] = (COMMAND_R, COMMAND_R_PLUS)
