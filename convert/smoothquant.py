"""SmoothQuant of one decoder layer: choose, fold, round.

Names follow two vocabularies: Hugging Face's for what comes in ("self_attn.q_proj.weight"),
TensorRT-LLM's for what goes out ("attention.qkv.weight").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .architectures import HEADS, Group, Linear
from .calibrate import LayerStatistics
from .model import Model
from .rounding import SMALLEST, row_amax, to_int8
from .scheme import Scheme
from .smoothing import Block, Smoothing, choose

Tensors = dict[str, torch.Tensor]
VALUE = "self_attn.v_proj"


@dataclass(frozen=True)
class Options:
    """How SmoothQuant decides.

    Attributes:
        alpha: migration strength for every group, or None to search it group by group.
        act_range: "auto", or a method of ranges.METHODS, for static activation scales.
        fold: fold the factors of o_proj and down_proj into the linear before them where that is exact,
            and give every output row of qkv its own scale. False writes what upstream's converter writes.
    """

    alpha: float | None = None
    act_range: str = "auto"
    fold: bool = True


@dataclass
class Layer:
    """A decoder layer between choosing and rounding.

    Attributes:
        norms: weights of the layer norms, float32 [hidden], by TensorRT-LLM name.
        weights, biases: float32, by Hugging Face part.
        smoothers: what the runtime still divides by, float32 [in], by group name.
        ranges: X of each group's smoothed input, by group name; None per token.
        folded: what the output rows of a feeding linear were divided by, by Hugging Face part.
    """

    norms: Tensors
    weights: Tensors
    biases: Tensors
    smoothers: Tensors
    ranges: dict[str, float | None]
    folded: Tensors


def quantize_layer(
    source: Tensors, statistics: LayerStatistics, model: Model, scheme: Scheme, options: Options
) -> tuple[Tensors, dict[str, Smoothing]]:
    """All SmoothQuant tensors of a layer, whole (before any cut over ranks), and what was chosen.

    Args:
        source: the layer's Hugging Face tensors, any floating dtype.
    """
    layer = Layer(
        norms={ours: source[f"{theirs}.weight"].float() for ours, theirs in model.family.norms.items()},
        weights={part: source[f"{part}.weight"].float() for linear in model.family.linears for part in linear.parts},
        biases={
            part: source[f"{part}.bias"].float()
            for linear in model.family.linears
            if model.has_bias(linear.name)
            for part in linear.parts
        },
        smoothers={},
        ranges={},
        folded={},
    )
    chosen = {}
    for group in model.family.groups:
        chosen[group.name] = choose(
            statistics.inputs[group.name],
            blocks_of(layer, group, model, scheme, options),
            options.alpha,
            options.act_range if scheme.static else None,
        )
    for group in model.family.groups:
        smooth(layer, group, chosen[group.name], statistics, model, scheme, options)
    tensors: Tensors = {f"{norm}.weight": weight for norm, weight in layer.norms.items()}
    for group in model.family.groups:
        tensors |= group_scales(layer, group, scheme)
        for name in group.linears:
            tensors |= round_linear(layer, group, model.family.linear(name), statistics, model, scheme, options)
    if scheme.kv_cache == "INT8":
        tensors["attention.kv_cache_scaling_factor"] = cache_scale(statistics, layer.folded[VALUE])
    return tensors, chosen


def parts_of(group: Group, model: Model) -> list[str]:
    return [part for name in group.linears for part in model.family.linear(name).parts]


def blocks_of(layer: Layer, group: Group, model: Model, scheme: Scheme, options: Options) -> list[Block]:
    """The group's matrices, with the scales that they will have once everything is folded.

    A linear that feeds another group may scale its rows freely (the next smoother undoes it), so folding
    makes its one scale per matrix as fine as one per row.
    """
    feeders = {g.feeder for g in model.family.groups} if options.fold else set()
    return [
        Block.of(layer.weights[part], row_scaled(linear, scheme, options) or part in feeders)
        for linear in map(model.family.linear, group.linears)
        for part in linear.parts
    ]


def row_scaled(linear: Linear, scheme: Scheme, options: Options) -> bool:
    """One scale per output row: TensorRT-LLM stores a qkv scale per column whatever the algorithm."""
    return scheme.per_channel or (linear.cut == HEADS and options.fold)


def smooth(
    layer: Layer,
    group: Group,
    chosen: Smoothing,
    statistics: LayerStatistics,
    model: Model,
    scheme: Scheme,
    options: Options,
) -> None:
    """Apply a group's factor in float: weights times s, and 1 / s into whatever makes their input."""
    s = chosen.factor
    for part in parts_of(group, model):
        layer.weights[part] = layer.weights[part] * s
    layer.ranges[group.name] = chosen.range
    if group.norm is not None:
        layer.norms[group.norm] = layer.norms[group.norm] / s
        layer.smoothers[group.name] = torch.ones_like(s)
        return
    assert group.feeder is not None
    feeder = layer.weights[group.feeder]
    layer.folded[group.feeder] = feeder.new_ones(feeder.shape[0])
    exact = feeder.shape[0] == s.shape[0]
    if options.fold and exact:
        free_rows = not row_scaled(model.family.linear_of_part(group.feeder), scheme, options)
        folded = equalizer(feeder) if free_rows else s / s.log().mean().exp()
        if group.feeder == VALUE:
            folded = folded * cache_balance(statistics, folded)
        layer.folded[group.feeder] = folded
        layer.weights[group.feeder] = feeder / folded[:, None]
        if group.feeder in layer.biases:
            layer.biases[group.feeder] = layer.biases[group.feeder] / folded
        s = s / folded
    layer.smoothers[group.name] = s


def cache_balance(statistics: LayerStatistics, folded: torch.Tensor) -> float:
    """What to divide smoothed values by besides, so that they reach as far as the keys.

    An INT8 cache has one scale for both; the runtime smoother takes the common factor back.
    """
    if statistics.key_amax is None or statistics.value_amax is None:
        return 1.0
    key, value = float(statistics.key_amax.max()), float((statistics.value_amax / folded).max())
    return value / key if key > 0 and value > 0 else 1.0


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
    model: Model,
    scheme: Scheme,
    options: Options,
) -> Tensors:
    """The tensors that execute one linear: integers, scales, smoother and bias."""
    weight = torch.cat([layer.weights[part] for part in linear.parts])
    amax = torch.cat([row_amax(layer.weights[part]) for part in linear.parts])
    if not row_scaled(linear, scheme, options):
        amax = torch.cat([piece.max().expand_as(piece) for piece in amax.split(model.out_features(linear.name))])
    tensors = {"weight": to_int8(weight, amax)}
    if model.has_bias(linear.name):
        tensors["bias"] = torch.cat([layer.biases[part] for part in linear.parts])
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
            output = max(statistics.output_amax[part] for part in linear.parts) or 1.0
            scale = scale * (range_ / output)
            tensors["act_scale"] = torch.tensor([[output / 127]])
        tensors["per_channel_scale"] = scale[None]
        if group.norm is None:
            tensors["smoother"] = smoother[None]
    return {f"{linear.name}.{suffix}": tensor for suffix, tensor in tensors.items()}


def cache_scale(statistics: LayerStatistics, folded: torch.Tensor | float = 1.0) -> torch.Tensor:
    """kv_cache_scaling_factor of an INT8 cache: the largest |key| or |value| over 127, float32 [1].

    Queries do not count, for the cache never holds them; keys count as the cache holds them, after the
    rotary embedding.

    Args:
        folded: what smoothing divided the values by, [kv_size].
    """
    assert statistics.key_amax is not None
    assert statistics.value_amax is not None
    largest = torch.maximum(statistics.key_amax.max(), (statistics.value_amax / folded).max())
    return torch.where(largest > SMALLEST, largest, 1.0)[None] / 127
