"""Integers in little-endian words of 32 bits, the first in the lowest bits, 2^(b-1) above what they are."""

from __future__ import annotations

from ....plugins.lazy import torch


def packed(values: torch.Tensor, bits: int) -> torch.Tensor:
    """int8 [rows, n] of 4 or 8 bits -> int32 [rows, ceil(n * bits / 32)]."""
    unsigned = (values.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    unsigned = torch.nn.functional.pad(unsigned, (0, -unsigned.shape[1] % (32 // bits)))
    if bits == 4:
        unsigned = unsigned[:, ::2] | unsigned[:, 1::2] << 4
    words: torch.Tensor = unsigned.flatten().view(torch.int32)
    return words.view(len(values), -1)
