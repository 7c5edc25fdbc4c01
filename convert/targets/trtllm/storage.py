"""How one rank's piece of a tensor lies in its file: as it is, or packed for a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ....plugins import fragments
from ....plugins.lazy import torch
from ....plugins.nibbles import unpack_rows
from ....plugins.packing import Layout
from ...numbers.nibbles import pack_rows
from . import packing


@dataclass(frozen=True)
class Storage:
    """A packing and its inverse.

    Attributes:
        store: a piece [out, ...] -> what the file holds.
        read: the inverse.
        shape: the piece's shape -> the stored one.
    """

    store: Callable[[torch.Tensor], torch.Tensor]
    read: Callable[[torch.Tensor], torch.Tensor]
    shape: Callable[[list[int]], list[int]]


def _same(value: torch.Tensor) -> torch.Tensor:
    return value


def _turned(value: torch.Tensor) -> torch.Tensor:
    return value.t().contiguous()


PLAIN = Storage(_same, _same, lambda shape: shape)
# AWQ: scales by outputs and then groups.
TALL = Storage(_turned, _turned, lambda shape: shape[::-1])
# AWQ: int8 [out, in] -> [out / 2, in], two rows a byte.
ROW_PAIRS = Storage(pack_rows, unpack_rows, lambda shape: [shape[0] // 2, shape[1]])
# QServe: int8 [out, in] -> [out, in / 2], and [out, groups] -> [groups, out] in the kernel's order.
FRAGMENTS = Storage(fragments.pack, fragments.unpack, lambda shape: [shape[0], shape[1] // 2])
BY_GROUP = Storage(fragments.by_group, fragments.by_channel, lambda shape: shape[::-1])


def mixed_gemm(layout: Layout, sm: int, dtype: str, item_size: int) -> Storage:
    """int8 [out, in] -> a mixed GEMM's stream on one GPU generation, viewed as [in, out * bits / 8 / item_size]."""

    def store(piece: torch.Tensor) -> torch.Tensor:
        return packing.pack(piece, layout, sm, getattr(torch, dtype))

    def read(stored: torch.Tensor) -> torch.Tensor:
        return packing.unpack(stored, layout, sm)

    return Storage(store, read, lambda shape: [shape[1], shape[0] * layout.bits // 8 // item_size])
