"""Every key that a checkpoint's config.json may have, for the families that this project converts.

TensorRT-LLM makes an attribute of any key, so one that nothing here knows may change the model: it is refused. Known
ones are read (``model_of_checkpoint``, ``Stated``), must have the one value that is executed here, or have no effect on
such a model, but still a type. Source: TensorRT-LLM 0.16 to 1.2 (models/modeling_utils.py, models/llama, mapping.py)
and ModelOpt's exporter.
"""

from __future__ import annotations

from typing import Any

from ...errors import InputError
from ...files.reader import Reader
from ...models.model import Model

READ = (
    "architecture",
    "dtype",
    "logits_dtype",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_size",
    "max_position_embeddings",
    "norm_epsilon",
    "hidden_act",
    "position_embedding_type",
    "rotary_base",
    "rotary_scaling",
    "attn_bias",
    "mlp_bias",
    "use_parallel_embedding",
    "embedding_sharding_dim",
    "share_embedding_table",
    "runtime_defaults",
    "mapping",
    "quantization",
    "moe",
)
# Channels of a head that are rotated.
ROTATED = ("rotary_embedding_dim", "rotary_dim")
# What a layer of another kind, or a part of a model, would say otherwise.
FIXED: dict[str, Any] = {
    "qk_layernorm": False,
    "rotary_pct": 1.0,
    "rotary_percentage": 1.0,
    "partial_rotary_factor": 1.0,
    "remove_duplicated_kv_heads": False,
    "disable_weight_only_quant_plugin": False,
    "is_pruned": False,
    "moe_num_experts": 0,
    "moe_top_k": 0,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "output_multiplier_scale": 1.0,
    "decoder": "llama",
    "rmsnorm": True,
    "lm_head_bias": False,
    "use_prompt_tuning": False,
}
MOE_FIXED: dict[str, Any] = {"num_experts": 0, "top_k": 0, "shared_expert_intermediate_size": 0}
# What a mixture of experts has its own values of.
MOE_OWN = (*MOE_FIXED, "normalization_mode")
NUMBER = (int, float)
# Types of what says nothing about such a model: who wrote the file, and settings of experts that it does not have.
EFFECTLESS: dict[str, tuple[type, ...]] = {
    "version": (str,),
    "producer": (str, dict),
    "rank": (int,),
    "tie_word_embeddings": (bool,),
    "moe_normalization_mode": (int,),
    "moe_tp_mode": (int,),
}
MOE_EFFECTLESS: dict[str, tuple[type, ...]] = {
    "normalization_mode": (int,),
    "sparse_mixer_epsilon": NUMBER,
    "tp_mode": (int,),
    "device_limited_n_group": (int,),
    "device_limited_topk_group": (int,),
    "device_limited_routed_scaling_factor": NUMBER,
}
MAPPING_READ = (
    "world_size",
    "tp_size",
    "pp_size",
    "cp_size",
    "moe_tp_size",
    "moe_ep_size",
    "moe_cluster_size",
    "attn_tp_size",
    "attn_cp_size",
)
MAPPING_FIXED: dict[str, Any] = {"cp_config": {}, "auto_parallel": False, "enable_attention_dp": False}
MAPPING_EFFECTLESS: dict[str, tuple[type, ...]] = {"gpus_per_node": (int,), "rank": (int,)}


def check_config(said: Reader, model: Model) -> None:
    """Raise InputError for a key of config.json that is not known, or that says what is not executed here."""
    check(said, (*READ, *ROTATED, "bias"), fixed(model), EFFECTLESS)
    own = model.family.config(model).get("moe", {}) if model.num_experts else {}
    check(said.section("moe"), (), MOE_FIXED | {key: own[key] for key in own if key in MOE_OWN}, MOE_EFFECTLESS)
    for key in ROTATED:
        if said.integer(key, model.rotary_dim) not in (model.rotary_dim, model.head_size):
            raise said.wrong(key, f"{model.rotary_dim}: so many of head_size {model.head_size} channels are turned")
    if said.flag("bias", model.attn_bias) != model.attn_bias:
        raise said.wrong("bias", f"attn_bias {shown_json(model.attn_bias)}")


def fixed(model: Model) -> dict[str, Any]:
    """Keys that must have one value, and it: those that any family may have, and the model's own."""
    own = {key: value for key, value in model.family.config(model).items() if key not in (*READ, *EFFECTLESS)}
    return FIXED | own


def check_mapping(parallel: Reader) -> None:
    """``check_config`` for the section "mapping", whose unknown keys are errors in TensorRT-LLM too."""
    check(parallel, MAPPING_READ, MAPPING_FIXED, MAPPING_EFFECTLESS)


def check(said: Reader, read: tuple[str, ...], fixed: dict[str, Any], effectless: dict[str, tuple[type, ...]]) -> None:
    """Raise InputError unless every key is known, and says what it must."""
    said.check_keys((*read, *fixed, *effectless))
    for key, wanted in fixed.items():
        value = said.values.get(key)
        if value is not None and not same(value, wanted):
            raise InputError(f"{said.wrong(key, shown_json(wanted))}; nothing else is executed here")
    for key, types in effectless.items():
        value = said.values.get(key)
        if value is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            raise said.wrong(key, " or ".join(NAMES[kind] for kind in types))


NAMES: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    dict: "an object",
}


def same(value: Any, wanted: Any) -> bool:
    """Equality of JSON values: true is not 1, but 1 is 1.0."""
    kinds = NUMBER if isinstance(wanted, float) else (type(wanted),)
    return isinstance(value, kinds) and isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def shown_json(value: Any) -> str:
    """A value of the tables above as JSON writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
