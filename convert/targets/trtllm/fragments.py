"""QServe's order of 4-bit integers: fragments of its GEMM's tiles."""

from __future__ import annotations

from ....plugins.lazy import torch
from ...numbers.nibbles import pack_nibbles, unpack_nibbles
from ...numbers.qserve import PerChannel, PerGroup

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


def stored_per_group(weight: PerGroup) -> dict[str, torch.Tensor]:
    """TensorRT-LLM's tensors: ``weight`` int8 [out, in / 2], ``s1_scales`` float16 [out], ``s2_scales`` and
    ``s2_zeros`` int8 [in / 128, out], the zeros as -z s2 modulo 256."""
    return {
        "weight": pack(weight.integers),
        "s1_scales": weight.s1,
        "s2_scales": by_group(weight.s2),
        "s2_zeros": by_group(-weight.zero * weight.s2),
    }


def read_per_group(tensors: dict[str, torch.Tensor]) -> PerGroup:
    """The inverse of ``stored_per_group``."""
    s2, scaled_zero = by_channel(tensors["s2_scales"]), by_channel(tensors["s2_zeros"])
    # z s2 <= 240 fits a byte, so it is what the negated byte says.
    zero = (-scaled_zero).view(torch.uint8) // s2.view(torch.uint8)
    return PerGroup(unpack(tensors["weight"]), tensors["s1_scales"], s2, zero.to(torch.int8))


def stored_per_channel(weight: PerChannel) -> dict[str, torch.Tensor]:
    """TensorRT-LLM's tensors: ``weight`` int8 [out, in / 2], ``s1_scales`` and ``s1_szeros`` = z s1 float16 [out]."""
    return {
        "weight": pack(weight.integers),
        "s1_scales": weight.s1,
        "s1_szeros": weight.scaled_zero,
    }


def read_per_channel(tensors: dict[str, torch.Tensor]) -> PerChannel:
    """The inverse of ``stored_per_channel``."""
    zero = (tensors["s1_szeros"].float() / tensors["s1_scales"].float()).round_().to(torch.int8)
    return PerChannel(unpack(tensors["weight"]), tensors["s1_scales"], zero)
