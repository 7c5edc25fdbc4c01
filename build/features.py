"""Plugin options that a checkpoint, a release and each other do not have together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..convert.errors import InputError
from ..convert.models.families import FAMILIES
from . import algorithms
from .checkpoint_folder import CheckpointFolder
from .releases import Release
from .wishes import Wishes


def check_features(checkpoint: CheckpointFolder, release: Release, config: dict[str, Any], wishes: Wishes) -> None:
    """Raise InputError for plugin options that this checkpoint or release cannot have together."""
    for fault, reason in feature_faults(checkpoint, release, config, wishes):
        if fault:
            raise InputError(reason)


def feature_faults(
    checkpoint: CheckpointFolder, release: Release, config: dict[str, Any], wishes: Wishes
) -> Iterator[tuple[bool, str]]:
    """(whether it is so, what is wrong and what would work) of each combination that fails."""
    plugin, algorithm, cache = config["plugin_config"], checkpoint.algorithm, checkpoint.kv_cache
    paged, mapping = plugin["use_paged_context_fmha"], checkpoint.mapping
    fp8 = algorithm == "FP8"
    fusing = [name for family in FAMILIES if family.reduce_fusion for name in family.architectures]
    scattering = [name for family in FAMILIES if family.stage_scatter for name in family.architectures]
    block = plugin["tokens_per_block"]
    yield (block & (block - 1) != 0, f"--tokens_per_block {block} is no power of two; use 32, 64 or 128")
    yield (
        plugin["gpt_attention_plugin"] not in ("auto", checkpoint.dtype, None),
        f"--gpt_attention_plugin {plugin['gpt_attention_plugin']}: the checkpoint is {checkpoint.dtype}; use auto",
    )
    yield (
        plugin["gpt_attention_plugin"] is None and config["kv_cache_type"] == "PAGED",
        "--gpt_attention_plugin disable: a paged KV cache needs it; use auto",
    )
    yield (
        bool(plugin.get("pp_reduce_scatter")) and checkpoint.architecture not in scattering,
        f"--pp_reduce_scatter enable works for {', '.join(scattering)} only",
    )
    yield (
        bool(plugin.get("gemm_allreduce_plugin")) and mapping.tp_size == 1,
        "--gemm_allreduce_plugin needs a checkpoint with tp_size > 1",
    )
    yield (
        any(plugin.get(name) for name in ("fuse_fp4_quant", "norm_quant_fusion")) and algorithm != "NVFP4",
        "--fuse_fp4_quant and --norm_quant_fusion are for NVFP4 models only",
    )
    yield (
        plugin.get("gemm_plugin") == "nvfp4" and algorithm != "NVFP4",
        "--gemm_plugin nvfp4 is for NVFP4 models only; use auto",
    )
    yield (
        paged and cache == "INT8",
        "--use_paged_context_fmha enable: paged context attention cannot read an INT8 KV cache; "
        "disable it, or convert with another --kv_cache",
    )
    yield (
        paged and cache == "FP8" and algorithm not in ("FP8", "W4A8_AWQ", "NVFP4"),
        f"--use_paged_context_fmha enable: an FP8 KV cache needs an FP8 model there, not {algorithm}; disable it",
    )
    yield (
        paged and config["kv_cache_type"] != "PAGED",
        "--use_paged_context_fmha enable needs --kv_cache_type paged",
    )
    yield (
        plugin["paged_kv_cache"] != (config["kv_cache_type"] == "PAGED"),
        "--paged_kv_cache and --kv_cache_type contradict each other; give --kv_cache_type alone",
    )
    yield (
        bool(plugin["use_fp8_context_fmha"]) and (cache != "FP8" or algorithm not in ("FP8", "W4A8_AWQ", "NVFP4")),
        "--use_fp8_context_fmha enable needs an FP8 model with an FP8 KV cache",
    )
    yield (
        bool(plugin["use_fused_mlp"]) and not (algorithms.fuses_mlp(algorithm) and checkpoint.uniform),
        f"--use_fused_mlp enable: {algorithm} has scales for gate and up apart, or layers are not quantized alike; "
        "only models that are FP8 throughout or not quantized fuse",
    )
    yield (
        any(plugin.get(name) for name in ("low_latency_gemm_plugin", "low_latency_gemm_swiglu_plugin")) and not fp8,
        "--low_latency_gemm_plugin and --low_latency_gemm_swiglu_plugin are for FP8 models only",
    )
    yield (
        bool(plugin.get("gemm_swiglu_plugin")) and not fp8,
        "--gemm_swiglu_plugin is for FP8 models only",
    )
    yield (
        plugin.get("gemm_plugin") == "fp8" and not fp8,
        "--gemm_plugin fp8 is for FP8 models only; use auto",
    )
    yield (
        bool(plugin["reduce_fusion"])
        and (checkpoint.architecture not in fusing or mapping.tp_size == 1 or mapping.pp_size > 1),
        f"--reduce_fusion enable works for {', '.join(fusing)} with tp_size > 1 and pp_size 1 only",
    )
    yield (
        bool(plugin["streamingllm"]) and not release.version.startswith("0."),
        f"--streamingllm enable: TensorRT-LLM {release.version} no longer has it",
    )
    yield (
        bool(plugin["multiple_profiles"]) and config["opt_num_tokens"] is not None,
        "--multiple_profiles enable and --opt_num_tokens exclude each other; give one of them",
    )
    yield (
        plugin["context_fmha"] is False and paged,
        "--context_fmha disable: paged context attention needs it; give --use_paged_context_fmha disable too",
    )
