"""build_config.json of one release: every value that decides an engine, stated rather than left to a default.

Only keys that every release reads are written, for unknown ones are ignored in silence. Up to 1.1 the six shape keys
are required, and kv_cache_type as soon as there is a plugin_config; 0.16 has use_fused_mlp beside plugin_config too.
"""

from __future__ import annotations

from typing import Any

from ..convert.errors import InputError
from ..convert.targets.trtllm.releases import number
from ..plugins import catalog
from .algorithms import enabled_by, fuses_mlp
from .checkpoint_folder import CheckpointFolder
from .flags import BY_NAME, Flag
from .releases import Release

PLUGIN_DEFAULTS: dict[str, Any] = {
    "gpt_attention_plugin": "auto",
    "gemm_plugin": "auto",
    "nccl_plugin": "auto",
    "context_fmha": True,
    "remove_input_padding": True,
    "multiple_profiles": False,
    "reduce_fusion": False,
    "streamingllm": False,
}
# Where a checkpoint says no max_position_embeddings, as under ALiBi.
POSITIONS_UNSAID = 2048
BUILD_DEFAULTS: dict[str, Any] = {
    "max_input_len": 1024,
    "max_batch_size": 2048,
    "max_beam_width": 1,
    "max_num_tokens": 8192,
    "opt_num_tokens": None,
    "max_prompt_embedding_table_size": 0,
    "gather_context_logits": False,
    "gather_generation_logits": False,
    "strongly_typed": True,
    "profiling_verbosity": "layer_names_only",
}

Given = dict[str, Any]


def build_config(checkpoint: CheckpointFolder, release: Release, given: Given) -> dict[str, Any]:
    """The content of build_config.json.

    Args:
        given: trtllm-build's flags as the user gave them, by name; values as Flag.value makes them.

    Raises:
        InputError: a flag that the release does not have.
    """
    check_flags(release, given)
    if given.get("gather_all_token_logits"):
        given = given | {"gather_context_logits": True, "gather_generation_logits": True}
    chosen = {into: values_for(into, given) for into in ("build", "plugin")}
    unlimited = checkpoint.config.get("max_position_embeddings") is None
    longest = POSITIONS_UNSAID if unlimited else checkpoint.positions
    config = BUILD_DEFAULTS | {"max_seq_len": longest} | chosen["build"]
    config["kv_cache_type"] = str(config.get("kv_cache_type", "paged")).upper()
    if "max_input_len" not in given:
        config["max_input_len"] = min(config["max_input_len"], config["max_seq_len"])
    config["plugin_config"] = plugin_config(checkpoint, release, chosen["plugin"], config["kv_cache_type"] == "PAGED")
    if release.version == "0.16.0":
        config["use_fused_mlp"] = config["plugin_config"]["use_fused_mlp"]
    return config


def plugin_config(checkpoint: CheckpointFolder, release: Release, given: Given, paged: bool) -> dict[str, Any]:
    """The plugins that the checkpoint's quantization needs, and the features around them.

    The quantization plugins get the engine's dtype, as the builder gives it to them itself; stating them makes the
    plan complete. Paged context attention cannot read an INT8 cache, nor an FP8 cache of a model that is not FP8.
    """
    algorithm, cache = checkpoint.algorithm, checkpoint.kv_cache
    readers = ("FP8",) if not release.paged_context else ("FP8", "W4A8_AWQ", "NVFP4")
    readable = cache is None or (cache == "FP8" and algorithm in readers)
    config = PLUGIN_DEFAULTS | {
        "paged_kv_cache": paged,
        "tokens_per_block": release.tokens_per_block,
        "use_paged_context_fmha": release.paged_context and readable and paged,
        "use_fp8_context_fmha": release.paged_context and cache == "FP8" and readable and paged,
        "use_fused_mlp": fuses_mlp(algorithm) and checkpoint.uniform,
        "smooth_quant_plugins": True,
    }
    config |= quantization_plugins(checkpoint)
    return config | given


def quantization_plugins(checkpoint: CheckpointFolder) -> dict[str, Any]:
    """PluginConfig entries that a checkpoint's quantization switches on."""
    wanted = {plugin for algorithm in checkpoint.algorithms for plugin in enabled_by(algorithm)}
    enabled = [plugin for plugin in catalog.QUANTIZATION if plugin in wanted]
    return {plugin.config_key: checkpoint.dtype if plugin.typed else True for plugin in enabled}


def values_for(into: str, given: Given) -> dict[str, Any]:
    return {BY_NAME[name].name: value for name, value in given.items() if BY_NAME[name].into == into}


def check_flags(release: Release, given: Given) -> None:
    """Raise InputError for a flag that this release does not have."""
    for name in given:
        flag: Flag = BY_NAME[name]
        if not number(flag.since) <= number(release.version) <= number(flag.until):
            have = f"{flag.since} and later" if number(release.version) < number(flag.since) else f"up to {flag.until}"
            raise InputError(f"--{name}: TensorRT-LLM {release.version} has no such flag; releases {have} have it")
