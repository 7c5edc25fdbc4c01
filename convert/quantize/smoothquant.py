"""SmoothQuant of one decoder layer: choose, fold, round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..models.layer import Layer
from ..models.pieces import HEADS, Group, Linear
from ..numbers.awq import scaled_gram
from ..numbers.gptq import gptq
from ..numbers.quantized import QuantizedLinear
from ..numbers.rounding import Grid, kept, row_amax, to_int8
from ..numbers.smoothing import Block, Smoothing, choose, of_rows, unscaled
from ..statistics.layer import LayerStatistics
from .kv_cache import value_over_key
from .options import QuantizeOptions
from .scheme import CHANNEL, Scheme


def quantize_groups(
    layer: Layer,
    groups: Sequence[Group],
    statistics: LayerStatistics,
    scheme: Scheme,
    options: QuantizeOptions,
    dtype: torch.dtype,
) -> tuple[dict[str, QuantizedLinear], dict[str, Any]]:
    """A layer's linears, by name, and what was chosen.

    Args:
        groups: those that have this scheme.
        dtype: the runtime's, which may be what scales are kept in.
    """
    chosen = dict[str, Smoothing]()
    rows = {group.name: layer.feeding(group, groups, shared=True) if scheme.folded else None for group in groups}
    for group in groups:
        blocks = blocks_of(layer, group, groups, scheme, options)
        inputs, act_range = statistics.inputs[group.name], options.act_range if scheme.static else None
        if scheme.folded and group.norm is None and rows[group.name] is None:
            chosen[group.name] = unscaled(inputs, blocks, act_range)
        else:
            chosen[group.name] = choose(inputs, blocks, options.alpha, act_range, rows[group.name])
    for group in groups:
        if scheme.folded:
            fold(layer, group, chosen[group.name], rows[group.name])
        else:
            smooth(layer, group, groups, chosen[group.name], statistics, scheme, options)
    linears = {
        linear.name: round_linear(layer, group, linear, statistics, scheme, options, dtype)
        for group in groups
        for linear in map(layer.model.family.linear, group.linears)
    }
    return linears, {name: described(smoothing) for name, smoothing in chosen.items()}


def described(smoothing: Smoothing) -> dict[str, Any]:
    """A choice as it stands in the manifest."""
    return {"alpha": smoothing.alpha, "range": smoothing.range, "error": smoothing.error}


def blocks_of(
    layer: Layer, group: Group, groups: Sequence[Group], scheme: Scheme, options: QuantizeOptions
) -> list[Block]:
    """The group's matrices, with the scales that they will have once everything is folded.

    A linear that feeds another group may scale its rows freely (the next smoother undoes it), so folding
    makes its one scale per matrix as fine as one per row.
    """
    feeders = {g.feeder for g in groups} if options.fold else set()
    blocks = []
    for linear in map(layer.model.family.linear, group.linears):
        if row_scaled(linear, scheme, options) or linear.cut == HEADS or len(linear.parts) == 1:
            free = [row_scaled(linear, scheme, options) or part in feeders for part in linear.parts]
            blocks += [Block.of(layer.weights[part], by_row) for part, by_row in zip(linear.parts, free, strict=True)]
        else:  # one scale for all parts
            blocks.append(Block.of(layer.weight(linear), per_channel=False))
    return blocks


def row_scaled(linear: Linear, scheme: Scheme, options: QuantizeOptions) -> bool:
    """One scale per output row: q, k and v have one a row whatever the scheme, for their matrices do not share one."""
    return scheme.granularity == CHANNEL or (linear.cut == HEADS and options.fold)


def smooth(
    layer: Layer,
    group: Group,
    groups: Sequence[Group],
    chosen: Smoothing,
    statistics: LayerStatistics,
    scheme: Scheme,
    options: QuantizeOptions,
) -> None:
    """Apply a group's factor in float: weights times s, and 1 / s into whatever makes their input."""
    layer.ranges[group.name] = chosen.range
    folded = None
    if group.feeder is not None and options.fold and layer.may_fold(group, groups):
        feeder = layer.weights[group.feeder]
        free_rows = not row_scaled(layer.model.family.linear_of_part(group.feeder), scheme, options)
        folded = equalizer(feeder) if free_rows else chosen.factor / chosen.factor.log().mean().exp()
        if group.feeder == layer.model.family.attention[2]:
            folded = folded * value_over_key(statistics, folded)
    layer.scale_input(group, chosen.factor, folded)


def fold(layer: Layer, group: Group, chosen: Smoothing, rows: torch.Tensor | None) -> None:
    """The same where the runtime divides nothing: all of 1 / s goes into the norm, or the feeder's rows."""
    layer.ranges[group.name] = chosen.range
    layer.scale_input(group, chosen.factor, None if rows is None else of_rows(chosen.factor, rows), rows)


def equalizer(weight: torch.Tensor) -> torch.Tensor:
    """Divisors that give every row of a weight the same maximum, their geometric mean 1; float32 [out]."""
    largest = row_amax(weight)
    return largest / largest.log().mean().exp()


def round_linear(
    layer: Layer,
    group: Group,
    linear: Linear,
    statistics: LayerStatistics,
    scheme: Scheme,
    options: QuantizeOptions,
    dtype: torch.dtype,
) -> QuantizedLinear:
    """One linear, its input's smoother and range as ``smooth`` left them."""
    weight = torch.cat([layer.weights[part] for part in linear.parts])
    amax = torch.cat([row_amax(layer.weights[part]) for part in linear.parts])
    if not row_scaled(linear, scheme, options):
        shared = layer.model.out_features(linear.name) if linear.cut == HEADS else [len(amax)]
        amax = torch.cat([piece.max().expand_as(piece) for piece in amax.split(shared)])
    scale = kept(amax / 127, dtype) if scheme.kept else amax / 127
    integers = to_int8(weight, 127 * scale if scheme.kept else amax)
    if options.gptq(scheme):
        gram = scaled_gram(statistics.inputs[group.name].gram_matrix(), layer.factors[group.name])
        integers = gptq(weight, gram, Grid(scale[:, None], None, -127, 127), act_order=True).values
    output = None
    if scheme.static:
        output = max(float(statistics.output_amax[part].max()) for part in linear.parts) or 1.0
    return QuantizedLinear(
        integers,
        scale if scheme.granularity == CHANNEL or linear.cut == HEADS else scale[:1],
        smoother=layer.smoothers[group.name] if group.norm is None and not scheme.folded else None,
        range=layer.ranges[group.name],
        output=output,
    )
