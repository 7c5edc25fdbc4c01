"""Arithmetic of kernels that PyTorch has no function for: fused multiply-adds, quotients, sums by halves, ranges."""

from __future__ import annotations

from .lazy import torch

# What the per-token kernels start a row's largest value at, in the row's dtype.
LEAST_RANGE = 1e-6
# The last of a float64's 53 bits that a float32 has no room for.
BEYOND_FLOAT32 = 2**29 - 1


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a b + c, rounded once, to c's dtype.

    Args:
        a, b: [...], any floating dtype up to float32.
        c: [...], float32, float16 or bfloat16.
    """
    exact = a.double() * b.double() + c.double()
    return exact.float() if c.dtype == torch.float32 else rounded_to_odd(exact).to(c.dtype)


def rounded_to_odd(x: torch.Tensor) -> torch.Tensor:
    """float64 -> float32, the last bit standing for all that are cut off: to round that again is to round x once."""
    bits = x.view(torch.int64)
    lost = (bits & BEYOND_FLOAT32) != 0
    return ((bits | lost.long() << 29) & ~BEYOND_FLOAT32).view(torch.float64).float()


def quotients(number: float, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """number / x and x / number, each rounded once; PyTorch's operators multiply by a rounded reciprocal."""
    numbers = torch.full_like(x, number)
    return numbers / x, x / numbers


def warp_sum(x: torch.Tensor) -> torch.Tensor:
    """[..., lanes] -> [..., 1], lanes a power of two: the upper half is added to the lower one until one is left."""
    while x.shape[-1] > 1:
        lower, upper = x.chunk(2, -1)
        x = lower + upper
    return x


def row_range(x: torch.Tensor) -> torch.Tensor:
    """The largest |x| of every row, at least 1e-6 as x's dtype has it: [tokens, channels] -> float32 [tokens, 1]."""
    return x.abs().amax(-1, keepdim=True).clamp_min_(LEAST_RANGE).float()
