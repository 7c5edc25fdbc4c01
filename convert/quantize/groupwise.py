"""AWQ and GPTQ of one decoder layer: scale what each group of linears reads, clip, round, all scored by Gram matrices.

    AWQ    s by search, then clip, then round          W4A16_AWQ, W4A8_AWQ
    GPTQ   s = 1, clip, then GPTQ's rounding           W4A16_GPTQ, W8A16_GPTQ

Either may take the other's rounding. 1 / s goes into the norm, or into the rows of the feeding linear where that is
exact; rows scale freely, for every row of every group has its own scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ...plugins import fp8
from ...plugins.weight_only_groupwise_quant_matmul import dequantized, fp8_scale
from ..models.family import Group, Linear
from ..models.layer import Layer, Tensors
from ..numbers import awq
from ..numbers.fp8 import range_scale
from ..numbers.gptq import gptq
from ..numbers.gram import output_energy
from ..numbers.inputs import InputStatistics
from ..numbers.rounding import Grid, Grouped
from ..numbers.smoothing import sampled
from ..statistics.layer import LayerStatistics
from .options import QuantizeOptions
from .scheme import AWQ, Scheme

# Rows of a rounded weight that its reported error is measured on.
MEASURED_ROWS = 256


def quantize_groups(
    layer: Layer,
    groups: Sequence[Group],
    statistics: LayerStatistics,
    scheme: Scheme,
    options: QuantizeOptions,
    dtype: torch.dtype,
) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a layer's linears, whole, and what was chosen; ``layer`` becomes what they compute.

    Args:
        groups: those that have this scheme.
        dtype: the engine's; scales are chosen as it keeps them.
    """
    family, report, tensors = layer.model.family, dict[str, Any](), Tensors()
    searched = {group.name: search(layer, group, statistics.inputs[group.name], scheme, options) for group in groups}
    for group in groups:
        s = searched[group.name].factor
        layer.scale_input(group, s, s if options.fold and layer.may_fold(group, groups) else None)
    for group in groups:
        scaling, inputs = searched[group.name], statistics.inputs[group.name]
        gram = inputs.gram_matrix()
        # What the folded and the runtime parts of s together leave of the input.
        scaled = awq.scaled_gram(gram, scaling.factor) if scheme.form == AWQ else gram
        errors = []
        for name in group.linears:
            linear = family.linear(name)
            weight = layer.weight(linear)
            rounded = round_linear(weight, scaled, scheme, options, dtype)
            own = stored(layer, group, linear, rounded, scheme)
            if scheme.fp8_activations:
                own |= fp8_factors(layer, group, linear, rounded, inputs, dtype)
            tensors |= own
            computed = computed_weight(own, linear, scheme, dtype)
            errors.append(relative_error(weight, computed, scaled))
            layer.set_weight(linear, computed)
        # Its reciprocal is what is stored.
        layer.smoothers[group.name] = 1 / (1 / layer.smoothers[group.name]).to(dtype).float()
        report[group.name] = {"alpha": scaling.alpha, "error": max(errors)}
    return tensors, report


def grid_of(weight: torch.Tensor, scheme: Scheme, options: QuantizeOptions) -> Grid:
    """What covers a weight: AWQ's kernels have no zeros, so its grids are symmetric."""
    symmetric = scheme.form == AWQ or options.symmetric
    return Grid.of(weight, scheme.group_size, scheme.bits, symmetric)


def search(
    layer: Layer, group: Group, inputs: InputStatistics, scheme: Scheme, options: QuantizeOptions
) -> awq.Scaling:
    """AWQ's scaling of a group's input; none for GPTQ, whose format cannot hold one."""
    weights = [layer.weights[part] for part in layer.model.family.parts(group)]
    if scheme.form != AWQ:
        return awq.Scaling(torch.ones_like(weights[0][0]), None, 0.0)
    grid = partial(grid_of, scheme=scheme, options=options)
    return awq.search(weights, inputs.gram_matrix(), grid, scheme.group_size, inputs.magnitude)


def round_linear(
    weight: torch.Tensor, gram: torch.Tensor, scheme: Scheme, options: QuantizeOptions, dtype: torch.dtype
) -> Grouped:
    """Clip and round a fused weight, float32 [out, in], whose input has this Gram matrix."""
    grid = awq.clip(weight, gram, grid_of(weight, scheme, options)).stored(dtype)
    return gptq(weight, gram, grid, act_order=True) if options.gptq(scheme) else grid.round(weight)


def relative_error(weight: torch.Tensor, computed: torch.Tensor, gram: torch.Tensor) -> float:
    """The squared error of a rounded linear's output over the output's energy, on a sample of its rows."""
    rows, times = sampled(weight, MEASURED_ROWS)
    energy = float(times @ output_energy(weight[rows], gram)) or 1.0
    return float(times @ output_energy(computed[rows] - weight[rows], gram)) / energy


def repacked(
    layer: Layer, groups: Sequence[Group], ready: Mapping[str, Grouped], scheme: Scheme, dtype: torch.dtype
) -> Tensors:
    """The tensors of linears that someone else has quantized: their integers and scales, nothing divided anywhere.

    Args:
        ready: each Hugging Face linear, in the scheme's groups of channels.
        dtype: the engine's.
    """
    tensors = Tensors()
    for group in groups:
        for name in group.linears:
            linear = layer.model.family.linear(name)
            own = stored(layer, group, linear, fused([ready[part] for part in linear.parts]), scheme)
            layer.set_weight(linear, computed_weight(own, linear, scheme, dtype))
            tensors |= own
    return tensors


def fused(parts: Sequence[Grouped]) -> Grouped:
    """The rows of linears that read one input, one below the other."""
    zero = None
    if any(part.zero is not None for part in parts):
        zero = torch.cat([torch.zeros_like(p.scale, dtype=torch.int8) if p.zero is None else p.zero for p in parts])
    return Grouped(torch.cat([part.integers for part in parts]), torch.cat([part.scale for part in parts]), zero)


def stored(layer: Layer, group: Group, linear: Linear, weight: Grouped, scheme: Scheme) -> Tensors:
    """The tensors of one linear, by name inside the layer."""
    tensors = {"weight": weight.integers, "weights_scaling_factor": weight.scale.t().contiguous()}
    if scheme.form == AWQ:
        smoother = layer.smoothers.get(group.name, weight.scale.new_ones(weight.integers.shape[1]))
        tensors["prequant_scaling_factor"] = 1 / smoother[None]
    else:
        zero = torch.zeros_like(weight.scale) if weight.zero is None else -weight.zero.float() * weight.scale
        tensors["zero"] = zero.t().contiguous()
    return {f"{linear.name}.{suffix}": tensor for suffix, tensor in tensors.items()}


def fp8_factors(
    layer: Layer, group: Group, linear: Linear, weight: Grouped, inputs: InputStatistics, dtype: torch.dtype
) -> Tensors:
    """W4A8_AWQ's two numbers. Dequantized weights pass through FP8 too: their largest value takes its whole range.

    The loader divides prequant_scaling_factor by the first of them, and the quotient must fit the engine's dtype.
    """
    range_ = range_scale((inputs.channel_amax() / layer.factors[group.name]).amax())
    least = (1 / layer.smoothers[group.name]).amax() / torch.finfo(dtype).max
    return {
        f"{linear.name}.activation_scaling_factor": torch.maximum(range_, 1.01 * least),
        f"{linear.name}.weights_scaling_factor_2": range_scale(weight.dequantize().abs().amax()),
    }


def computed_weight(tensors: Tensors, linear: Linear, scheme: Scheme, dtype: torch.dtype) -> torch.Tensor:
    """What the plugin multiplies the linear's input with, for many tokens: float32 [out, in].

    Args:
        tensors: of the linear, before they are cast.
        dtype: the engine's.
    """
    own = {name.removeprefix(f"{linear.name}."): tensor for name, tensor in tensors.items()}
    weight, scale, zero = own["weight"], own["weights_scaling_factor"].to(dtype), own.get("zero")
    if scheme.fp8_activations:
        second = own["weights_scaling_factor_2"]
        return fp8.saturate(dequantized(weight, fp8_scale(scale, second)).float()).float() * second
    return dequantized(weight, scale, None if zero is None else zero.to(dtype), scheme.sm).float()
