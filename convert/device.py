"""Where calibration runs, and in which dtype."""

from __future__ import annotations

import torch

from .errors import InputError


def pick_device(name: str) -> torch.device:
    """ "auto" is the GPU when there is one; otherwise a torch device name.

    Raises:
        InputError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device: {name!r} is no device; use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device; use --device cpu")
    if str(device) != "cpu" and device.type != "cuda":
        raise InputError(f"--device: {name!r} is not supported; use auto, cpu or cuda")
    return device


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively (any recent GPU, AMX, AVX512-BF16), else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    for instruction_set in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        if getattr(torch.cpu, instruction_set, lambda: False)():
            return torch.bfloat16
    return torch.float32
