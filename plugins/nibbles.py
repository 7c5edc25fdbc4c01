"""Two 4-bit integers a byte."""

from __future__ import annotations

from .lazy import torch


def pack_nibbles(values: torch.Tensor) -> torch.Tensor:
    """Two 4-bit values a byte along the last axis, the even one in the low nibble.

    Args:
        values: int8 [..., n], n even; only the low four bits of each count.

    Returns:
        int8 [..., n / 2].
    """
    low, high = values.view(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
    packed: torch.Tensor = low & 15 | high << 4
    return packed.view(torch.int8)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The signed values of ``pack_nibbles``: int8 [..., n / 2] -> int8 [..., n], each in [-8, 7]."""
    return torch.stack((packed << 4 >> 4, packed >> 4), -1).flatten(-2)


def unpack_rows(packed: torch.Tensor) -> torch.Tensor:
    """AWQ's rows, 2j in the low nibble and 2j + 1 in the high one: int8 [out / 2, in] -> int8 [out, in]."""
    return unpack_nibbles(packed.t()).t().contiguous()
