"""FP8 weights (e4m3: four exponent bits, three mantissa bits, largest value 448).

    W = values * scale        scale = max|W| / 448

with one scale per tensor (FP8) or per output channel (FP8_PER_CHANNEL_PER_TOKEN). Micikevicius et al. 2022, "FP8
Formats for Deep Learning".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...plugins import fp8
from ...plugins.lazy import torch
from .quantized import QuantizedLinear
from .rounding import kept


def per_tensor(
    weight: torch.Tensor, amax: torch.Tensor | None = None, dtype: torch.dtype | None = None
) -> QuantizedLinear:
    """One scale, which dtype keeps (None: float32), for a float32 [out, in] weight; from amax where others share it."""
    scale = kept(range_scale(weight.abs().amax() if amax is None else amax), dtype)
    return QuantizedLinear(fp8.saturate(weight / scale), scale)


def per_channel(weight: torch.Tensor, dtype: torch.dtype | None = None) -> QuantizedLinear:
    """One scale per output channel of a float32 [out, in] weight; dtype keeps them (None: float32)."""
    scale = kept(range_scale(weight.abs().amax(1)), dtype)
    return QuantizedLinear(fp8.saturate(weight / scale[:, None]), scale)


def alike(parts: Sequence[QuantizedLinear]) -> list[QuantizedLinear]:
    """Matrices with one scale each, all with the largest: those of others are rounded to it, once more."""
    each = list(parts)
    if any(part.values.dtype != torch.float8_e4m3fn or part.scale.numel() > 1 for part in each):
        return each
    largest = torch.stack([part.scale.reshape(()) for part in each]).max()
    return [
        part
        if torch.equal(part.scale.reshape(()), largest)
        else replace(part, values=fp8.saturate(part.values.float() * (part.scale / largest)), scale=largest.reshape(1))
        for part in each
    ]


def range_scale(amax: torch.Tensor) -> torch.Tensor:
    """The scale that maps a range onto FP8's, kept above 1 / (448 * 512) as the kernels keep theirs.

    Of an input too, from the range that calibration found.

    Args:
        amax: largest absolute values, float32 [] or [n].

    Returns:
        float32 [1] or [n].
    """
    return (amax.reshape(-1).float() / fp8.MAX).clamp_min(fp8.LEAST_SCALE)
