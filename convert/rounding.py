"""Rounding weights to INT8."""

from __future__ import annotations

import math

import torch

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
