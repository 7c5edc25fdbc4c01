"""The table of token types: weight-only algorithms quantize it too, a row at a time, whatever bits linears have."""

from __future__ import annotations

from collections.abc import Callable

from ....plugins.lazy import torch
from ...quantize.precision import Precision
from .formats.weight_only import WeightOnly
from .mixture import quant_algo
from .ranks import INT8

SCALE = "per_token_scale"


def names(precision: Precision) -> tuple[str, str]:
    """Full names of the table, and of its scales where it is quantized."""
    prefix = f"{precision.model.family.engine_embedding}token_embedding"
    return f"{prefix}.weight", f"{prefix}.{SCALE}"


def quantized(precision: Precision) -> bool:
    """Whether an engine reads integers there."""
    return quant_algo(precision) in [scheme.name for scheme in WeightOnly.schemes]


def shapes(precision: Precision, dtype: str) -> dict[str, tuple[list[int], str]]:
    """Name -> (shape, dtype) of what a rank's file holds; nothing for a family without such a table."""
    model, (weight, scale) = precision.model, names(precision)
    if model.family.type_embedding is None:
        return {}
    whole = [model.type_vocab_size, model.hidden_size]
    if not quantized(precision):
        return {weight: (whole, dtype)}
    return {weight: (whole, INT8), scale: ([model.type_vocab_size], dtype)}


def store(precision: Precision, types: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a file holds of a table in the engine's dtype: each row rounded to a 127th of its largest value."""
    weight, scale = names(precision)
    if not quantized(precision):
        return {weight: types}
    rows = types.float()
    scales = (rows.abs().amax(1) / 127).to(types.dtype)
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    integers = (rows / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return {weight: integers, scale: scales}


def read(precision: Precision, stored: Callable[[str], torch.Tensor]) -> torch.Tensor | None:
    """The table as an engine computes with it, in its dtype; None for a family without."""
    weight, scale = names(precision)
    if precision.model.family.type_embedding is None:
        return None
    table = stored(weight)
    if not quantized(precision):
        return table
    scales = stored(scale)
    return table.to(scales.dtype) * scales[:, None]
