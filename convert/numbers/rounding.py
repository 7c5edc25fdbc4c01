"""Rounding weights to integers: INT8 for SmoothQuant, 4 and 8 bits by groups for the weight-only formats."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ...plugins.lazy import torch
from .quantized import QuantizedLinear

# Below this, 127 / w leaves float32.
SMALLEST = 1e-30


def row_amax(weight: torch.Tensor) -> torch.Tensor:
    """max_j |W[i, j]| of every row, float32 [out]; 1 for a row of zeros, whose integers are 0 whatever the scale."""
    largest = torch.linalg.vector_norm(weight, math.inf, 1)
    return torch.where(largest > SMALLEST, largest, 1.0)


def to_int8(weight: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    """round(W * 127 / w), half to even; within [-127, 127] since no |W| exceeds its w.

    Args:
        weight: float32 [out, in].
        amax: w, float32 [out] or [1].

    Returns:
        int8 [out, in].
    """
    return (weight * (127 / amax)[:, None]).round_().to(torch.int8)


@dataclass(frozen=True)
class Grid:
    """The values that a weight may take: k * scale + offset for integers low <= k <= high, offset = -zero * scale.

    Attributes:
        scale: float32 [out, groups]; group g scales in / groups neighbouring input channels.
        zero: float32 [out, groups], whole numbers; None where every zero is 0.
        low, high: the range of k.
        dtype: what offsets are kept in; None for float32.
    """

    scale: torch.Tensor
    zero: torch.Tensor | None
    low: int
    high: int
    dtype: torch.dtype | None = None

    @staticmethod
    def of(weight: torch.Tensor, group_size: int, bits: int, symmetric: bool) -> Grid:
        """The grid that just covers every group.

            symmetric:   scale = max|W| / (2^(b-1) - 1)
            asymmetric:  scale = (max - min) / (2^b - 1), zero = round(-min / scale) - 2^(b-1); 0 is on the grid

        Args:
            weight: float32 [out, in], in a multiple of group_size.
        """
        grouped, half = weight.unflatten(1, (-1, group_size)), 2 ** (bits - 1)
        if symmetric:
            return Grid(_or_one(grouped.abs().amax(2)) / (half - 1), None, -half, half - 1)
        least, largest = grouped.amin(2).clamp_max(0), grouped.amax(2).clamp_min(0)
        scale = _or_one(largest - least) / (2 * half - 1)
        return Grid(scale, (-least / scale).round_() - half, -half, half - 1)

    def stored(self, dtype: torch.dtype) -> Grid:
        """The grid that is left when scales and offsets are kept in a narrower dtype; integers should be chosen on this
        one."""
        return replace(self, scale=stored(self.scale, dtype).float(), dtype=dtype)

    def kept(self, dtype: torch.dtype) -> Grid:
        """The same for readers that keep scales in a dtype, and zeros as they are."""
        return replace(self, scale=kept(self.scale, dtype))

    @property
    def offset(self) -> torch.Tensor | None:
        """-zero * scale as it is kept, float32 [out, groups]; None where every zero is 0."""
        return None if self.zero is None else (-self.zero * self.scale).to(self.dtype or torch.float32).float()

    def round(self, weight: torch.Tensor) -> QuantizedLinear:
        """Round float32 [out, in] to the nearest k, half to even."""
        offset, w = self.offset, weight.unflatten(1, (self.scale.shape[1], -1))
        k: torch.Tensor = (w if offset is None else w - offset[..., None]) / self.scale[..., None]
        return self.take(k.round_().clamp_(self.low, self.high).flatten(1))

    def snap(self, weight: torch.Tensor) -> torch.Tensor:
        """What ``round`` and ``dequantize`` make of float32 [out, in], without the integers between."""
        scale, offset, w = self.scale[..., None], self.offset, weight.unflatten(1, (self.scale.shape[1], -1))
        k: torch.Tensor = (w if offset is None else w - offset[..., None]) / scale
        k.round_().clamp_(self.low, self.high).mul_(scale)
        return (k if offset is None else k.add_(offset[..., None])).flatten(1)

    def take(self, k: torch.Tensor) -> QuantizedLinear:
        """The weight of given k, whole numbers [out, in]."""
        zero = None if self.zero is None else self.zero.to(torch.int8)
        return QuantizedLinear(k.to(torch.int8), self.scale, zero)


def kept(scale: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A scale as a dtype keeps it, float32; no smaller than its least normal number, below which digits are lost. None
    keeps all of it."""
    if dtype is None:
        return scale
    return scale.to(dtype).clamp_min(torch.finfo(dtype).smallest_normal).float()


def stored(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A scale in the dtype that keeps it; never 0, for weights are divided by it."""
    info = torch.finfo(dtype)
    return scale.to(dtype).clamp_min(info.smallest_normal * info.eps)


def weight_only(weight: torch.Tensor, bits: int) -> QuantizedLinear:
    """W8A16 and W4A16, to the bit as TensorRT-LLM rounds: one scale per output channel.

        scale = max|W| * 2^-(b-1)      k = W / scale, half away from zero, in [-2^(b-1), 2^(b-1) - 1]

    A channel of zeros has scale 0 and integers 0.

    Args:
        weight: float32 [out, in].
    """
    half = 2 ** (bits - 1)
    scale = weight.abs().amax(1, keepdim=True) / half
    k = weight / torch.where(scale > 0, scale, 1.0)
    whole = k.trunc()
    k = whole + (k - whole).mul_(2).trunc_()
    return QuantizedLinear(k.clamp_(-half, half - 1).to(torch.int8), scale)


def _or_one(span: torch.Tensor) -> torch.Tensor:
    return torch.where(span > SMALLEST, span, 1.0)
