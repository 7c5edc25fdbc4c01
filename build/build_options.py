"""What a build is asked for, on the command line or in a recipe, and the plan that this means."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..convert.files.apart import check_apart
from ..convert.files.bounds import Options, Rule, bounded
from . import engines, flags, gpus, releases
from .checkpoint_folder import CheckpointFolder
from .plan import Plan, make_plan
from .releases import Release
from .wishes import Wishes

# GiB
LARGEST_MEMORY = 4096


def flags_of(given: Any, where: str) -> dict[str, Any]:
    return flags.accepted(given, "--")


@dataclass(frozen=True)
class BuildOptions(Options):
    """For which GPU and workload engines are planned.

    Attributes:
        gpu, sm, gpu_memory: the GPU by name, or by compute capability and GiB; this machine's if None.
        release: of TensorRT-LLM; the installed one, or the latest, if None.
        preset: shapes for few sequences at once, or for as many as the GPU holds.
        max_output_len: tokens; with max_input_len it gives max_seq_len.
        chunked_context: serving cuts long prompts.
        kv_cache_free_gpu_mem_fraction: share of the free memory that serving gives to the KV cache.
        engine: "auto" builds where TensorRT-LLM is installed, "required" fails elsewhere, "never" plans only.
        flags: trtllm-build's, by name; values as a recipe or build_config.json has them.
    """

    gpu: str | None = None
    sm: int | None = bounded(None, least=50, most=200)
    gpu_memory: float | None = bounded(None, least=1, most=LARGEST_MEMORY)
    release: str | None = None
    preset: str | None = bounded(None, words=("latency", "throughput"))
    max_output_len: int | None = bounded(None, least=1)
    chunked_context: bool = False
    kv_cache_free_gpu_mem_fraction: float = bounded(0.9, above=0, most=1)
    engine: str = bounded("auto", words=("auto", "required", "never"))
    flags: dict[str, Any] = field(default_factory=dict, metadata={"rule": Rule(read=flags_of)})


def check_build_apart(checkpoint_dir: str | Path, output_dir: str | Path, options: BuildOptions) -> None:
    """Raise InputError if a build would write into what it reads."""
    caches = {f"--{name}": options.flags.get(name) for name in ("input_timing_cache", "output_timing_cache")}
    check_apart({"--checkpoint_dir": checkpoint_dir}, {"--output_dir": output_dir, **caches})
    check_apart({"--input_timing_cache": caches["--input_timing_cache"]}, {"--output_dir": output_dir})


def target_of(options: BuildOptions) -> tuple[Release, gpus.GPU]:
    """The release and the GPU to build for."""
    release = releases.find(options.release or engines.installed_release() or releases.LATEST)
    return release, gpus.target(options.gpu, options.sm, options.gpu_memory)


def wishes_of(options: BuildOptions) -> Wishes:
    fraction = options.kv_cache_free_gpu_mem_fraction
    return Wishes(options.flags, options.preset, options.max_output_len, options.chunked_context, fraction)


def plan_of(checkpoint: CheckpointFolder, options: BuildOptions) -> Plan:
    """The plan that the options ask for.

    Raises:
        InputError: what cannot work, and what would.
    """
    return make_plan(checkpoint, *target_of(options), wishes_of(options))
