"""FP8 (e4m3) arithmetic that plugins share: saturation, scales per token, and the product."""

from __future__ import annotations

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


def quantize_per_token(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """QuantizePerToken with FP8 output: scale = max|x| / 448, row by row, kept above 1 / (448 * 512).

    Args:
        x: [tokens, channels].

    Returns:
        e4m3 [tokens, channels] and float32 [tokens, 1].
    """
    y = x.float()
    largest = y.abs().amax(-1, keepdim=True).clamp_min(1e-6)
    return saturate(y * (MAX / largest).clamp_max(1 / LEAST_SCALE)), (largest / MAX).clamp_min(LEAST_SCALE)
