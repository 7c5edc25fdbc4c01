"""A checkpoint's config.json: written, and read back as a model."""

from __future__ import annotations

from typing import Any

from ...errors import InputError
from ...files.reader import Reader
from ...models.dimensions import MOST_LAYERS, check_heads, family_of, with_experts
from ...models.model import Model, Sizes
from ...models.pieces import ALIBI, INTERLEAVED, LEARNED, ROTARY, SCALED_ALIBI
from ...models.rope import read_rope
from ...quantize.precision import Precision
from .keys import check_config
from .layout import embedding_axis
from .quant_config import quantization
from .ranks import Mapping

POSITIONS = {
    ROTARY: "rope_gpt_neox",
    INTERLEAVED: "rope_gptj",
    LEARNED: "learned_absolute",
    ALIBI: "alibi",
    SCALED_ALIBI: "alibi_with_scale",
}


def checkpoint_config(precision: Precision, mapping: Mapping, dtype: str, smoothquant_val: float) -> dict[str, Any]:
    """TensorRT-LLM's config.json, in the key set that releases 0.16 to 1.2.1 read."""
    model = precision.model
    return {
        "architecture": model.engine_class,
        "dtype": dtype,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_hidden_layers,
        "num_attention_heads": model.num_attention_heads,
        "hidden_act": model.hidden_act,
        "logits_dtype": "float32",
        "norm_epsilon": model.norm_epsilon,
        "runtime_defaults": None,
        "position_embedding_type": POSITIONS[model.family.positions],
        "num_key_value_heads": model.num_key_value_heads,
        "intermediate_size": model.intermediate_size,
        "max_position_embeddings": model.max_position_embeddings,
        "mapping": {
            "world_size": mapping.world_size,
            "gpus_per_node": 8,
            "cp_size": 1,
            "tp_size": mapping.tp_size,
            "pp_size": mapping.pp_size,
            "moe_tp_size": mapping.moe_tp_size,
            "moe_ep_size": mapping.moe_ep_size,
        },
        "quantization": quantization(precision, smoothquant_val, mapping.stages(model.num_hidden_layers)[0]),
        "use_parallel_embedding": embedding_axis(model, mapping) is not None,
        "embedding_sharding_dim": 0,
        "share_embedding_table": model.shares_embedding,
        "head_size": model.head_size,
        "qk_layernorm": False,
        "rotary_embedding_dim": model.rotary_dim,
        **model.family.config(model),
    }


def read_sizes(said: Reader) -> Sizes:
    """The sizes that a TensorRT-LLM checkpoint's config.json states, or that TensorRT-LLM takes where it does not."""
    hidden, heads = said.integer("hidden_size"), said.integer("num_attention_heads")
    if hidden % heads and not said.has("head_size"):
        raise InputError(
            f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}; state head_size"
        )
    kv_heads = said.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise InputError(f"config.json: num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    return Sizes(
        hidden_size=hidden,
        intermediate_size=said.integer("intermediate_size", 4 * hidden),
        num_hidden_layers=said.integer("num_hidden_layers", largest=MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_size=said.integer("head_size", hidden // heads),
        vocab_size=said.integer("vocab_size"),
    )


def model_of_checkpoint(config: dict[str, Any]) -> Model:
    """Interpret a TensorRT-LLM checkpoint's config.json.

    Raises:
        InputError: an architecture that this version cannot execute, a key that it does not know, or a missing or
            wrong value.
    """
    said = Reader(config)
    family = family_of(config.get("architecture"), said)
    sizes = read_sizes(said)
    unlimited = family.defaults["max_position_embeddings"] if family.alibi else None
    positions = said.integer("max_position_embeddings", unlimited)
    if said.section("rotary_scaling").values and not family.rotary:
        raise InputError(f"config.json: rotary_scaling must be null: {config['architecture']} has no rotary embedding")
    scaling = long_rope(said) or said.section("rotary_scaling").values
    rope = read_rope({"rope_theta": said.number("rotary_base", 1e4), "rope_scaling": scaling}, positions)
    said.choice("position_embedding_type", (POSITIONS[family.positions], *(["long_rope"] if scaling else [])))
    biased = {linear.bias for linear in family.linears if linear.bias is not None}
    fields = dict[str, Any](
        architecture=said.text("architecture"),
        family=family,
        dtype=said.text("dtype"),
        **vars(sizes),
        max_position_embeddings=positions,
        norm_epsilon=float(said.number("norm_epsilon", 1e-5, largest=1.0)),
        hidden_act=said.choice("hidden_act", tuple(dict.fromkeys(family.activations.values()))),
        activation=said.text("hidden_act"),
        rotary_base=rope.theta,
        rotary_scaling=rope.scaling,
        rotary_dim=rotary_dim(said, sizes.head_size) if family.partly_turned else sizes.head_size,
        tied=family.shares_embedding and said.flag("share_embedding_table"),
        **{flag: said.flag(flag, said.flag("bias", family.biased)) for flag in biased},
    )
    model = with_experts(Model(**(fields | family.stated(said))))
    check_config(said, model)
    check_heads(model)
    return model


def rotary_dim(said: Reader, head_size: int) -> int:
    """The channels of a head that an engine turns."""
    if said.has("rotary_dim"):
        return said.integer("rotary_dim", largest=head_size)
    return int(head_size * said.number("rotary_pct", 1.0, largest=1.0))


def long_rope(said: Reader) -> dict[str, Any]:
    """Longrope's two tables of factors, as transformers would say it; empty where there are none."""
    if not said.has("longrope_scaling_short_factors"):
        return {}
    return {
        "rope_type": "longrope",
        "short_factor": said.numbers("longrope_scaling_short_factors"),
        "long_factor": said.numbers("longrope_scaling_long_factors"),
        "original_max_position_embeddings": said.integer("original_max_position_embeddings"),
    }
