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

from ..errors import InputError
from ..models.layer import Layer
from ..models.pieces import Group
from ..numbers import awq, fp8
from ..numbers.gptq import Compensation, round_by
from ..numbers.gram import output_energy
from ..numbers.inputs import InputStatistics
from ..numbers.quantized import QuantizedLinear, stacked
from ..numbers.rounding import Grid
from ..numbers.smoothing import of_rows, pooled, sampled
from ..sources.readymade.kinds import ANEW
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
    rows = {group.name: layer.feeding(group, groups, scheme.folded) if options.fold else None for group in groups}
    searched = {
        group.name: search(layer, group, statistics.inputs[group.name], scheme, options, rows[group.name])
        for group in groups
    }
    for group in groups:
        s, fed = searched[group.name].factor, rows[group.name]
        layer.scale_input(group, s, None if fed is None else of_rows(s, fed), fed)
    for group in groups:
        scaling, inputs = searched[group.name], statistics.inputs[group.name]
        gram = inputs.gram_matrix()
        # What the folded and the runtime parts of s together leave of the input.
        scaled = awq.scaled_gram(gram, scaling.factor) if scheme.prescaled else gram
        largest = (inputs.channel_amax() / layer.factors[group.name]).amax() if scheme.static else None
        divides = scheme.prescaled and not scheme.folded and group.norm is None
        smoother = layer.smoothers[group.name] if divides else None
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
    layer: Layer,
    group: Group,
    inputs: InputStatistics,
    scheme: Scheme,
    options: QuantizeOptions,
    rows: torch.Tensor | None,
) -> awq.Scaling:
    """AWQ's scaling of a group's input; none where nothing can scale it, as for GPTQ.

    Args:
        rows: the feeder's row of each input channel, int64 [in], where the feeder takes the factor.
    """
    weights = [layer.weights[part] for part in layer.model.family.parts(group)]
    if not scheme.prescaled or (scheme.folded and group.norm is None and rows is None):
        return awq.Scaling(torch.ones_like(weights[0][0]), None, 0.0)
    grid = partial(grid_of, scheme=scheme, options=options)
    assert scheme.group_size is not None
    magnitude = inputs.magnitude
    if scheme.folded and rows is not None and magnitude is not None:
        magnitude = pooled(magnitude, rows, "mean")
    return awq.search(weights, inputs.gram_matrix(), grid, scheme.group_size, magnitude)


def round_linear(
    weight: torch.Tensor,
    gram: torch.Tensor,
    by: Compensation | None,
    scheme: Scheme,
    options: QuantizeOptions,
    dtype: torch.dtype,
) -> QuantizedLinear:
    """Clip and round a fused weight, float32 [out, in], whose input has this Gram matrix; to nearest, or by GPTQ."""
    grid = awq.clip(weight, gram, grid_of(weight, scheme, options))
    grid = grid.kept(dtype) if scheme.kept else grid.stored(dtype)
    return grid.round(weight) if by is None else round_by(by, weight, grid)


def relative_error(weight: torch.Tensor, computed: torch.Tensor, gram: torch.Tensor) -> float:
    """The squared error of a rounded linear's output over the output's energy, on a sample of its rows."""
    rows, times = sampled(weight, MEASURED_ROWS)
    energy = float(times @ output_energy(weight[rows], gram)) or 1.0
    return float(times @ output_energy(computed[rows] - weight[rows], gram)) / energy


def whole(parts: Sequence[QuantizedLinear], names: Sequence[str]) -> QuantizedLinear:
    """What a runtime fuses. FP8 matrices with scales of their own get the largest of them, and are rounded to it.

    Raises:
        InputError: their tool did not quantize them alike.
    """
    try:
        return stacked(fp8.alike(parts), names)
    except InputError as error:
        raise InputError(f"{error}; {ANEW}") from None


def same_scale(part: QuantizedLinear, made: QuantizedLinear) -> bool:
    """Whether a matrix with one scale kept it."""
    return part.scale.numel() > 1 or made.scale.numel() > 1 or torch.equal(part.scale, made.scale)


def repacked(
    layer: Layer, groups: Sequence[Group], ready: Mapping[str, QuantizedLinear], scheme: Scheme, computed: Computed
) -> tuple[dict[str, QuantizedLinear], dict[str, Any]]:
    """Linears that someone else has quantized: their integers and scales, nothing divided anywhere; and what of it had
    to change.

    Args:
        ready: each Hugging Face linear, in the scheme's groups of channels.
    """
    linears, report = dict[str, QuantizedLinear](), dict[str, Any]()
    for group in groups:
        for linear in map(layer.model.family.linear, group.linears):
            made = whole([ready[part] for part in linear.parts], linear.parts)
            changed = [part for part in linear.parts if not same_scale(ready[part], made)]
            if changed:
                report[group.name] = {"rounded_again": changed}
            if group.norm is None and made.smoother is None:  # where there is room for one, it is all ones
                made = replace(made, smoother=torch.ones(made.values.shape[1], device=made.values.device))
            linears[linear.name] = made
            layer.set_weight(linear, computed(scheme, made))
    return linears, report
