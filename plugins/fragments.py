"""QServe's order of 4-bit integers: fragments of its GEMM's tiles."""

from __future__ import annotations

from .lazy import torch
from .nibbles import pack_nibbles, unpack_nibbles

# Axes of a weight cut into [out / 32, half, 8 rows, row, in / 32, half, 4 columns, column], in their stored order.
_FRAGMENT = (0, 4, 3, 6, 5, 2, 7, 1)


def pack(integers: torch.Tensor) -> torch.Tensor:
    """4-bit values as fragments: int8 [out, in] in [0, 15] -> int8 [out, in / 2]; both multiples of 32."""
    out, in_ = integers.shape
    cut = integers.view(out // 32, 2, 2, 8, in_ // 32, 2, 4, 4).permute(_FRAGMENT)
    return pack_nibbles(cut.reshape(out, in_))


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of ``pack``."""
    out, in_ = packed.shape[0], packed.shape[1] * 2
    cut = (unpack_nibbles(packed) & 15).view(out // 32, in_ // 32, 8, 4, 2, 2, 4, 2)
    return cut.permute([_FRAGMENT.index(axis) for axis in range(8)]).reshape(out, in_)


def by_group(values: torch.Tensor) -> torch.Tensor:
    """[out, groups] -> [groups, out], those of 32 outputs as a 4 x 8 table read down its columns."""
    table: torch.Tensor = values.t().unflatten(1, (-1, 4, 8))
    return table.transpose(2, 3).flatten(1).contiguous()


def by_channel(stored: torch.Tensor) -> torch.Tensor:
    """The inverse of ``by_group``."""
    table: torch.Tensor = stored.unflatten(1, (-1, 8, 4))
    return table.transpose(2, 3).flatten(1).t().contiguous()
