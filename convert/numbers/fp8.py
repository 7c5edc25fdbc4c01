"""FP8 weights (e4m3: four exponent bits, three mantissa bits, largest value 448).

    W = values * scale        scale = max|W| / 448

with one scale per tensor (FP8) or per output channel (FP8_PER_CHANNEL_PER_TOKEN). Micikevicius et al. 2022, "FP8
Formats for Deep Learning".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...plugins import fp8


@dataclass(frozen=True)
class Fp8Weight:
    """A weight in FP8.

    Attributes:
        values: float8_e4m3fn [out, in]; TensorRT-LLM's ``weight``.
        scale: float32 [1] (``weights_scaling_factor``) or [out] (``per_channel_scale``).
    """

    values: torch.Tensor
    scale: torch.Tensor

    def dequantize(self) -> torch.Tensor:
        """float32 [out, in]."""
        return self.values.float() * self.scale[:, None]


def per_tensor(weight: torch.Tensor, amax: torch.Tensor | None = None) -> Fp8Weight:
    """One scale for the whole of a float32 [out, in] weight, from amax where others share it."""
    scale = range_scale(weight.abs().amax() if amax is None else amax)
    return Fp8Weight(fp8.saturate(weight / scale), scale)


def per_channel(weight: torch.Tensor) -> Fp8Weight:
    """One scale per output channel of a float32 [out, in] weight."""
    scale = range_scale(weight.abs().amax(1))
    return Fp8Weight(fp8.saturate(weight / scale[:, None]), scale)


def range_scale(amax: torch.Tensor) -> torch.Tensor:
    """The scale that maps a range onto FP8's, kept above 1 / (448 * 512) as the kernels keep theirs.

    Also the ``activation_scaling_factor`` of a calibrated range.

    Args:
        amax: largest absolute values, float32 [] or [n].

    Returns:
        float32 [1] or [n].
    """
    return (amax.reshape(-1).float() / fp8.MAX).clamp_min(fp8.LEAST_SCALE)
