"""FP8 (e4m3) arithmetic that plugins share: saturation, scales per token, and the product."""

from __future__ import annotations

from . import kernels
from .arithmetic import quotients, row_range
from .lazy import torch

MAX = 448.0
# What the per-token and per-channel kernels keep their scales above.
LEAST_SCALE = 1 / (MAX * 512)


def saturate(x: torch.Tensor) -> torch.Tensor:
    """Round to the nearest e4m3 value, half to even, and saturate at +-448, as the device's conversion does."""
    return x.clamp(-MAX, MAX).to(torch.float8_e4m3fn)


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b.T of e4m3 [m, k] and [n, k], summed in float32 [m, n]; products of two values are exact there."""
    return a.float() @ b.float().t()


def held(weight: torch.Tensor) -> torch.Tensor:
    """A weight for many products: in float32, unless kernels multiply it as it is."""
    return weight if kernels.behind(weight) else weight.float()


def quantize_per_token(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """QuantizePerToken with FP8 output: scale = max|x| / 448, row by row, kept above 1 / (448 * 512).

    The kernel's conversion from float32 passes through bfloat16, hence rounds twice: one value in thirty comes out a
    step away from the nearest.

    Args:
        x: [tokens, channels].

    Returns:
        e4m3 [tokens, channels] and float32 [tokens, 1].
    """
    to_fp8, scale = quotients(MAX, row_range(x))
    scaled = x.float() * to_fp8.clamp_max(1 / LEAST_SCALE)
    return saturate(scaled.bfloat16()), scale.clamp_min(LEAST_SCALE)
