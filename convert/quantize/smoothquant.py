"""SmoothQuant of one decoder layer: choose, fold, round.

Names follow two vocabularies: Hugging Face's for what comes in ("self_attn.q_proj.weight"),
TensorRT-LLM's for what goes out ("attention.qkv.weight").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..models.family import HEADS, Group, Linear
from ..models.layer import Layer, Tensors
from ..numbers.awq import scaled_gram
from ..numbers.gptq import gptq
from ..numbers.rounding import Grid, row_amax, to_int8
from ..numbers.smoothing import Block, Smoothing, choose
from ..statistics.layer import LayerStatistics
from .kv_cache import value_over_key
from .options import QuantizeOptions
from .scheme import Scheme


def quantize_groups(
    layer: Layer, groups: Sequence[Group], statistics: LayerStatistics, scheme: Scheme, options: QuantizeOptions
) -> tuple[Tensors, dict[str, Any]]:
    """The SmoothQuant tensors of a layer's linears, whole (before any cut over ranks), and what was chosen.

    Args:
        groups: those that have this scheme.
    """
    family, chosen, tensors = layer.model.family, dict[str, Smoothing](), Tensors()
    for group in groups:
        chosen[group.name] = choose(
            statistics.inputs[group.name],
            blocks_of(layer, group, groups, scheme, options),
            options.alpha,
            options.act_range if scheme.static else None,
        )
    for group in groups:
        smooth(layer, group, groups, chosen[group.name], statistics, scheme, options)
    for group in groups:
        tensors |= group_scales(layer, group, scheme)
        for name in group.linears:
            tensors |= round_linear(layer, group, family.linear(name), statistics, scheme, options)
    return tensors, {name: described(smoothing) for name, smoothing in chosen.items()}


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
    return [
        Block.of(layer.weights[part], row_scaled(linear, scheme, options) or part in feeders)
        for linear in map(layer.model.family.linear, group.linears)
        for part in linear.parts
    ]


def row_scaled(linear: Linear, scheme: Scheme, options: QuantizeOptions) -> bool:
    """One scale per output row: TensorRT-LLM stores a qkv scale per column whatever the algorithm."""
    return scheme.per_channel or (linear.cut == HEADS and options.fold)


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


def equalizer(weight: torch.Tensor) -> torch.Tensor:
    """Divisors that give every row of a weight the same maximum, their geometric mean 1; float32 [out]."""
    largest = row_amax(weight)
    return largest / largest.log().mean().exp()


def group_scales(layer: Layer, group: Group, scheme: Scheme) -> Tensors:
    """The plugin's scale from activation to int8 (127 / X) that belongs to a group's input."""
    if not scheme.plugin:
        return {}
    range_ = layer.ranges[group.name]
    scale = torch.tensor([1.0 if range_ is None else 127 / range_])
    if group.norm is not None:
        return {f"{group.norm}.scale_to_int": scale}
    if range_ is None:
        return {}
    return {f"{group.linears[0].split('.')[0]}.quantization_scaling_factor": scale}


def round_linear(
    layer: Layer,
    group: Group,
    linear: Linear,
    statistics: LayerStatistics,
    scheme: Scheme,
    options: QuantizeOptions,
) -> Tensors:
    """The tensors that execute one linear: integers, scales, smoother and bias."""
    weight = torch.cat([layer.weights[part] for part in linear.parts])
    amax = torch.cat([row_amax(layer.weights[part]) for part in linear.parts])
    if not row_scaled(linear, scheme, options):
        amax = torch.cat([piece.max().expand_as(piece) for piece in amax.split(layer.model.out_features(linear.name))])
    integers = to_int8(weight, amax)
    if options.gptq(scheme):
        gram = scaled_gram(statistics.inputs[group.name].gram_matrix(), layer.factors[group.name])
        integers = gptq(weight, gram, Grid(amax[:, None] / 127, None, -127, 127), act_order=True).integers
    tensors = {"weight": integers}
    range_, smoother = layer.ranges[group.name], layer.smoothers[group.name]
    if not scheme.plugin:
        assert range_ is not None
        tensors["activation_scaling_factor"] = torch.tensor([range_ / 127])
        tensors["weights_scaling_factor"] = amax / 127
        tensors["prequant_scaling_factor"] = 1 / smoother
    else:
        stored = amax if scheme.per_channel or linear.cut == HEADS else amax[:1]
        scale = stored / 127
        if range_ is not None:
            # The plugin multiplies by act_scale * per_channel_scale = (X / 127) (w / 127); Y cancels.
            output = max(float(statistics.output_amax[part].max()) for part in linear.parts) or 1.0
            scale = scale * (range_ / output)
            tensors["act_scale"] = torch.tensor([[output / 127]])
        tensors["per_channel_scale"] = scale[None]
        if group.norm is None:
            tensors["smoother"] = smoother[None]
    return {f"{linear.name}.{suffix}": tensor for suffix, tensor in tensors.items()}
