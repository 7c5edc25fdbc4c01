"""Which tiles ``scaled_gemm_triton`` multiplies, in which numbers, on which GPUs."""

from __future__ import annotations

from typing import Any

import torch
import triton

from .kernels import HOPPER, cdiv, compute_capability, power_of_two

# Generations whose multiprocessors have 100 KiB of shared memory.
SMALL = (86, 89, 120, 121)


def bucket(tokens: int) -> int:
    """Numbers of tokens that share a schedule."""
    return min(power_of_two(tokens), 4096)


def grid(tokens: int, out: int) -> Any:
    """One program a tile of the product."""
    return lambda meta: (cdiv(tokens, meta["BM"]) * cdiv(out, meta["BN"]),)


def shape_tiles(arguments: dict[str, Any]) -> None:
    """Descriptors copy tiles of the schedule that is tried."""
    depth = arguments["BK"]
    arguments["x"].block_shape = [arguments["BM"], depth]
    arguments["weight"].block_shape = [arguments["BN"], depth]


def schedules(*sizes: tuple[int, int, int, int, int], hook: Any = None) -> list[Any]:
    """Tiles as (tokens, outputs, inputs), warps and tiles in flight."""
    return [
        triton.Config({"BM": m, "BN": n, "BK": k}, num_warps=warps, num_stages=stages, pre_hook=hook)
        for m, n, k, warps, stages in sizes
    ]


def fitting(configs: list[Any], arguments: dict[str, Any], **meta: Any) -> list[Any]:
    """Schedules whose tiles are not far larger than the product, nor far smaller; any if none is left."""
    tokens = arguments["BUCKET"]
    sized = [c for c in configs if c.kwargs["BM"] <= max(tokens, 64) and (c.num_warps == 8 or tokens < 2048)]
    return in_shared_memory(sized) or configs[-1:]


def fitting_few(configs: list[Any], arguments: dict[str, Any], **meta: Any) -> list[Any]:
    """On Hopper the first, whose programs have a multiprocessor each, where they all have one; else the second.

    Trials would take whichever a cold cache favours.
    """
    one, several = configs[:2]
    if compute_capability(torch.cuda.current_device()) < HOPPER or len(in_shared_memory([one, several])) < 2:
        return in_shared_memory(configs) or configs[-1:]
    processors = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    return [one if cdiv(arguments["out"], one.kwargs["BN"]) <= processors else several]


def in_shared_memory(configs: list[Any]) -> list[Any]:
    """Schedules whose tiles in flight fit a multiprocessor."""
    sm = compute_capability(torch.cuda.current_device())
    room = 101376 if sm in SMALL else 166912 if sm < HOPPER else 232448

    def held(config: Any) -> int:
        tile = config.kwargs
        return int((tile["BM"] + tile["BN"]) * tile["BK"] * config.num_stages)

    return [config for config in configs if held(config) <= room]
