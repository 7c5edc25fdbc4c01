"""The door to the kernels: whether Triton's stand behind the references here.

Beside ``x.py``, which says what a plugin computes, lies ``x_triton.py``, whose ``run`` computes the same on a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from typing import Any, TypeVar, cast

from .lazy import torch

# The first GPU generation that the kernels are written for: Ampere.
LEAST_SM = 80
# The first that has a copy engine, and whose kernels may start before the one that makes their input has ended.
HOPPER = 90
# Triton computes its kernels with NumPy, on tensors of the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@cache
def compute_capability(device: int) -> int:
    """SM number of a GPU: 80, 86, 89, 90."""
    major, minor = torch.cuda.get_device_capability(device)
    return int(major * 10 + minor)


@cache
def available(device: int = 0) -> bool:
    """Whether kernels run on a GPU; where they do not a warning says why, once, and references compute instead."""
    why = None
    if importlib.util.find_spec("triton") is None:
        why = "Triton is not installed (pip install triton)"
    elif compute_capability(device) < LEAST_SM:
        why = f"the GPU is of SM {compute_capability(device)}, kernels need {LEAST_SM}"
    if why is not None:
        warnings.warn(f"PyTorch computes what kernels would, slower: {why}", stacklevel=2)
    return why is None


Function = TypeVar("Function", bound=Callable[..., Any])


def beside(reference: Function, module: str, name: str = "run") -> Function:
    """A reference, or the function of the module beside it that computes the same where kernels run.

    Args:
        reference: its first argument is a tensor, which says where.
    """
    kernel = cache(lambda: getattr(import_module(f".{module}", __package__), name))

    @wraps(reference)
    def run(x: torch.Tensor, *others: Any, **named: Any) -> Any:
        if not behind(x):
            return reference(x, *others, **named)
        if x.is_cuda and x.device.index != torch.cuda.current_device():
            with torch.cuda.device(x.device):  # Triton launches on the current one
                return kernel()(x, *others, **named)
        return kernel()(x, *others, **named)

    return cast(Function, run)


def behind(x: torch.Tensor) -> bool:
    """Whether kernels compute what is asked of a tensor."""
    return x.is_cuda and available(x.device.index or 0)


def behind_packed(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether kernels multiply a weight's integers as they are packed, by inputs of a dtype: half precision alone."""
    return behind(weight) and dtype in (torch.float16, torch.bfloat16)


def generation(x: torch.Tensor) -> int:
    """SM number of a tensor's GPU; 0 where kernels are interpreted."""
    return 0 if INTERPRETED else compute_capability(x.device.index or 0)


def starts_early(x: torch.Tensor) -> dict[str, bool]:
    """How a kernel is launched that waits for its input itself: on Hopper, while the one before it ends."""
    return {"EARLY": True, "launch_pdl": True} if generation(x) >= HOPPER else {"EARLY": False}


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up; Triton's own function takes as long as a launch."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The least power of two that is n or more."""
    return 1 << (n - 1).bit_length()
