"""Integer arithmetic that the INT8 plugins share: saturation and the exact product."""

from __future__ import annotations

from .lazy import torch


def saturate(x: torch.Tensor) -> torch.Tensor:
    """Round half to even and saturate to int8, as the device's float-to-int8 conversion does."""
    return x.round().clamp_(-128, 127).to(torch.int8)


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b.T exactly: int8 [m, k] and int8 [n, k] give int32 [m, n]."""
    # On a GPU the product wants whole tiles; on a CPU torch 2.13 answers zeros for an inner dimension of 1.
    tiles = a.shape[0] > 16 and a.shape[1] % 8 == 0 and b.shape[0] % 8 == 0
    fits = a.shape[1] > 1 if a.device.type == "cpu" else tiles
    if fits:
        return torch._int_mm(a, b.t())
    return (a.double() @ b.double().t()).to(torch.int32)  # float64 holds every sum that int32 does
