"""Quantizations that round every linear by itself, without a search: W8A16, W4A16, FP8 and QServe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..models.layer import Layer
from ..models.pieces import Group
from ..numbers import fp8, qserve
from ..numbers.gptq import gptq
from ..numbers.inputs import InputStatistics
from ..numbers.quantized import QuantizedLinear
from ..numbers.rounding import Grid, stored, weight_only
from ..statistics.layer import LayerStatistics
from .options import QuantizeOptions
from .scheme import E4M3, GROUP, MATRIX, Computed, Scheme


def quantize_groups(
    layer: Layer,
    groups: Sequence[Group],
    statistics: LayerStatistics,
    scheme: Scheme,
    options: QuantizeOptions,
    dtype: torch.dtype,
    computed: Computed,
) -> tuple[dict[str, QuantizedLinear], dict[str, Any]]:
    """A layer's linears, by name; ``layer`` becomes what they compute.

    Args:
        groups: those that have this scheme.
        dtype: the engine's; integers are chosen for scales as it keeps them.
    """
    linears = {}
    for group in groups:
        inputs = statistics.inputs.get(group.name)
        # Linears that read one input share a scale, so that a runtime may fuse them without rounding again.
        amax = torch.stack([layer.weights[part].abs().amax() for part in layer.model.family.parts(group)]).amax()
        for linear in map(layer.model.family.linear, group.linears):
            rounded = round_linear(layer.weight(linear), amax, inputs, scheme, options, dtype)
            linears[linear.name] = rounded
            layer.set_weight(linear, computed(scheme, rounded))
    return linears, {}


def round_linear(
    weight: torch.Tensor,
    amax: torch.Tensor,
    inputs: InputStatistics | None,
    scheme: Scheme,
    options: QuantizeOptions,
    dtype: torch.dtype,
) -> QuantizedLinear:
    """One linear.

    Args:
        weight: float32 [out, in].
        amax: the largest |weight| of all that read its input.
        inputs: of its group, where the scheme or its rounding wants to know them.
    """
    keeps = dtype if scheme.kept else None
    if scheme.weights == E4M3 and scheme.granularity == MATRIX:
        assert inputs is not None
        return replace(fp8.per_tensor(weight, amax, keeps), range=float(inputs.channel_amax().amax()))
    if scheme.weights == E4M3:
        return fp8.per_channel(weight, keeps)
    if scheme.activations is None:
        return weight_alone(weight, inputs, scheme, options, dtype)
    return qserve.per_group(weight) if scheme.granularity == GROUP else qserve.per_channel(weight)


def weight_alone(
    weight: torch.Tensor, inputs: InputStatistics | None, scheme: Scheme, options: QuantizeOptions, dtype: torch.dtype
) -> QuantizedLinear:
    """A fused weight, float32 [out, in], whose input stays in floating point."""
    if scheme.granularity == GROUP or scheme.kept:
        grid = Grid.of(weight, scheme.group_size or weight.shape[1], scheme.bits, symmetric=True)
        grid = grid.kept(dtype) if scheme.kept else grid.stored(dtype)
        return by_gptq(weight, inputs, grid) if options.gptq(scheme) else grid.round(weight)
    rounded = weight_only(weight, scheme.bits)
    if options.gptq(scheme):
        half = 2 ** (scheme.bits - 1)
        rounded = by_gptq(weight, inputs, Grid(stored(rounded.scale, dtype).float(), None, -half, half - 1))
    return replace(rounded, scale=rounded.scale[:, 0])


def by_gptq(weight: torch.Tensor, inputs: InputStatistics | None, grid: Grid) -> QuantizedLinear:
    """A weight, rounded so that its products with the inputs of calibration change least."""
    assert inputs is not None
    return gptq(weight, inputs.gram_matrix(), grid, act_order=True)
