"""AWQ and GPTQ of one decoder layer: scale what each group of linears reads, clip, round, all scored by Gram matrices.

    AWQ    s by search, then clip, then round          W4A16_AWQ, W4A8_AWQ
    GPTQ   s = 1, clip, then GPTQ's rounding           W4A16_GPTQ, W8A16_GPTQ

Either may take the other's rounding. 1 / s goes into the norm, or into the rows of the feeding linear where that is
exact; rows scale freely, for every row of every group has its own scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..models.layer import Layer
from ..models.pieces import Group
from ..numbers import awq
from ..numbers.gptq import Compensation, round_by
from ..numbers.gram import output_energy
from ..numbers.inputs import InputStatistics
from ..numbers.quantized import QuantizedLinear
from ..numbers.rounding import Grid
from ..numbers.smoothing import sampled
from ..statistics.layer import LayerStatistics
from .options import QuantizeOptions
from .scheme import Computed, Scheme

# Rows of a rounded weight that its reported error is measured on.
MEASURED_ROWS = 256


def quantize_groups(
    layer: Layer,
    groups: Sequence[Group],
    statistics: LayerStatistics,
    scheme: Scheme,
    options: QuantizeOptions,
    dtype: torch.dtype,
    computed: Computed,
) -> tuple[dict[str, QuantizedLinear], dict[str, Any]]:
    """A layer's linears, by name, and what was chosen; ``layer`` becomes what they compute.

    Args:
        groups: those that have this scheme.
        dtype: the engine's; scales are chosen as it keeps them.
    """
    report, linears = dict[str, Any](), dict[str, QuantizedLinear]()
    searched = {group.name: search(layer, group, statistics.inputs[group.name], scheme, options) for group in groups}
    for group in groups:
        s = searched[group.name].factor
        layer.scale_input(group, s, s if options.fold and layer.may_fold(group, groups) else None)
    for group in groups:
        scaling, inputs = searched[group.name], statistics.inputs[group.name]
        gram = inputs.gram_matrix()
        # What the folded and the runtime parts of s together leave of the input.
        scaled = awq.scaled_gram(gram, scaling.factor) if scheme.prescaled else gram
        largest = (inputs.channel_amax() / layer.factors[group.name]).amax() if scheme.static else None
        smoother = layer.smoothers[group.name] if scheme.prescaled and group.norm is None else None
        by, errors = Compensation.of(scaled, act_order=True) if options.gptq(scheme) else None, []
        for linear in map(layer.model.family.linear, group.linears):
            weight = layer.weight(linear)
            rounded = round_linear(weight, scaled, by, scheme, options, dtype)
            made = replace(rounded, smoother=smoother, range=None if largest is None else float(largest))
            executed = computed(scheme, made)
            errors.append(relative_error(weight, executed, scaled))
            layer.set_weight(linear, executed)
            linears[linear.name] = made
        # The runtime multiplies by its reciprocal, which is what it keeps.
        layer.smoothers[group.name] = 1 / (1 / layer.smoothers[group.name]).to(dtype).float()
        report[group.name] = {"alpha": scaling.alpha, "error": max(errors)}
    return linears, report


def grid_of(weight: torch.Tensor, scheme: Scheme, options: QuantizeOptions) -> Grid:
    """What covers a weight, without zeros where the scheme has none, or none are asked for."""
    assert scheme.group_size is not None
    return Grid.of(weight, scheme.group_size, scheme.bits, options.symmetric or not scheme.zeros)


def search(
    layer: Layer, group: Group, inputs: InputStatistics, scheme: Scheme, options: QuantizeOptions
) -> awq.Scaling:
    """AWQ's scaling of a group's input; none where the runtime cannot scale it, as for GPTQ."""
    weights = [layer.weights[part] for part in layer.model.family.parts(group)]
    if not scheme.prescaled:
        return awq.Scaling(torch.ones_like(weights[0][0]), None, 0.0)
    grid = partial(grid_of, scheme=scheme, options=options)
    assert scheme.group_size is not None
    return awq.search(weights, inputs.gram_matrix(), grid, scheme.group_size, inputs.magnitude)


def round_linear(
    weight: torch.Tensor,
    gram: torch.Tensor,
    by: Compensation | None,
    scheme: Scheme,
    options: QuantizeOptions,
    dtype: torch.dtype,
) -> QuantizedLinear:
    """Clip and round a fused weight, float32 [out, in], whose input has this Gram matrix; to nearest, or by GPTQ."""
    grid = awq.clip(weight, gram, grid_of(weight, scheme, options)).stored(dtype)
    return grid.round(weight) if by is None else round_by(by, weight, grid)


def relative_error(weight: torch.Tensor, computed: torch.Tensor, gram: torch.Tensor) -> float:
    """The squared error of a rounded linear's output over the output's energy, on a sample of its rows."""
    rows, times = sampled(weight, MEASURED_ROWS)
    energy = float(times @ output_energy(weight[rows], gram)) or 1.0
    return float(times @ output_energy(computed[rows] - weight[rows], gram)) / energy


def repacked(
    layer: Layer, groups: Sequence[Group], ready: Mapping[str, QuantizedLinear], scheme: Scheme, computed: Computed
) -> dict[str, QuantizedLinear]:
    """Linears that someone else has quantized: their integers and scales, nothing divided anywhere.

    Args:
        ready: each Hugging Face linear, in the scheme's groups of channels.
    """
    linears = {}
    for group in groups:
        for linear in map(layer.model.family.linear, group.linears):
            made = linears[linear.name] = fused([ready[part] for part in linear.parts])
            layer.set_weight(linear, computed(scheme, made))
    return linears


def fused(parts: Sequence[QuantizedLinear]) -> QuantizedLinear:
    """The rows of linears that read one input, one below the other."""
    zero = None
    if any(part.zero is not None for part in parts):
        zero = torch.cat([torch.zeros_like(p.scale, dtype=torch.int8) if p.zero is None else p.zero for p in parts])
    return QuantizedLinear(torch.cat([part.values for part in parts]), torch.cat([part.scale for part in parts]), zero)
