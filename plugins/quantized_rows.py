"""What quantizes behind an operation: rows as INT8 or FP8, per token or with a calibrated scale, divided first or not.

Norms and activations that leave as integers compute their rows in the engine's dtype, and end in one of these.
"""

from __future__ import annotations

from typing import NamedTuple

from . import fp8, int8
from .arithmetic import quotients, row_range
from .lazy import torch

INT8, FP8 = "int8", "fp8"


class Rows(NamedTuple):
    """Attributes:

    y_or_q: [tokens, channels], int8 or e4m3, or in the engine's dtype where nothing quantizes.
    scale: float32 [tokens, 1] of rows that were quantized per token.
    """

    y_or_q: torch.Tensor
    scale: torch.Tensor | None


def smoothed(x: torch.Tensor, smoother: torch.Tensor | None) -> torch.Tensor:
    """x / smoother, [tokens, channels] / [channels], both in x's dtype, to which the quotient is rounded."""
    return x if smoother is None else x / smoother.to(x.dtype)


def per_token(x: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize with the scale that a row's largest value asks for: int8 or e4m3, and float32 [tokens, 1]."""
    if kind == FP8:
        return fp8.quantize_per_token(x)
    to_int8, scale = quotients(127, row_range(x))
    return int8.saturate(x * to_int8), scale


def static(x: torch.Tensor, scale: torch.Tensor, kind: str) -> torch.Tensor:
    """Quantize with a calibrated scale, float32 [1].

    INT8 multiplies by it: 127 / range. FP8 divides by it, rounded to x's dtype: range / 448.
    """
    if kind == FP8:
        return fp8.saturate(x.float() / scale.view(1, 1).to(x.dtype).float())
    return int8.saturate(x * scale.view(1, 1))


def quantized(x: torch.Tensor, kind: str | None, scale: torch.Tensor | None) -> Rows:
    """Rows as they leave.

    Args:
        x: [tokens, channels] in the engine's dtype.
        kind: "int8", "fp8", or None: they leave as they are.
        scale: float32 [1] as for ``static``; without it, per token.
    """
    if kind is None:
        return Rows(x, None)
    return Rows(*per_token(x, kind)) if scale is None else Rows(static(x, scale, kind), None)
