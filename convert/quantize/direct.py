"""Quantizations that round every linear by itself, without a search: W8A16, W4A16, FP8 and QServe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...plugins import weight_only_quant_matmul
from ..models.family import Group, Linear
from ..models.layer import Layer, Tensors
from ..numbers import fp8, qserve
from ..numbers.gptq import gptq
from ..numbers.rounding import Grid, stored, weight_only
from ..statistics.layer import LayerStatistics
from .options import QuantizeOptions
from .scheme import FP8, FP8_ROWWISE, QSERVE_CHANNEL, QSERVE_GROUP, WEIGHT_ONLY, Scheme


def quantize_groups(
    layer: Layer,
    groups: Sequence[Group],
    statistics: LayerStatistics,
    scheme: Scheme,
    options: QuantizeOptions,
    dtype: torch.dtype,
) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a layer's linears, whole; ``layer`` becomes what they compute.

    Args:
        groups: those that have this scheme.
        dtype: the engine's; scales are chosen as it keeps them.
    """
    tensors = Tensors()
    for group in groups:
        for name in group.linears:
            linear = layer.model.family.linear(name)
            made, computed = round_linear(layer, group, linear, statistics, scheme, options, dtype)
            tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in made.items()}
            layer.set_weight(linear, computed)
    return tensors, {}


def round_linear(
    layer: Layer,
    group: Group,
    linear: Linear,
    statistics: LayerStatistics,
    scheme: Scheme,
    options: QuantizeOptions,
    dtype: torch.dtype,
) -> tuple[Tensors, torch.Tensor]:
    """A linear's tensors by suffix, and the weight [out, in] that they compute with."""
    weight = layer.weight(linear)
    if scheme.form == WEIGHT_ONLY:
        rounded = weight_only(weight, scheme.bits)
        if options.gptq(scheme):
            half = 2 ** (scheme.bits - 1)
            grid = Grid(stored(rounded.scale, dtype).float(), None, -half, half - 1)
            rounded = gptq(weight, statistics.inputs[group.name].gram_matrix(), grid, act_order=True)
        scale = stored(rounded.scale[:, 0], dtype)
        computed = weight_only_quant_matmul.dequantized(rounded.integers, scale)
        return {"weight": rounded.integers, "per_channel_scale": scale}, computed.float()
    if scheme.form == FP8:
        # Linears that read one input share a scale, so that a build may fuse gate and up without rounding again.
        amax = torch.stack([layer.weights[part].abs().amax() for part in layer.model.family.parts(group)]).amax()
        whole = fp8.per_tensor(weight, amax)
        range_ = fp8.range_scale(statistics.inputs[group.name].channel_amax().amax())
        made = {"weight": whole.values, "weights_scaling_factor": whole.scale, "activation_scaling_factor": range_}
        return made, whole.dequantize()
    if scheme.form == FP8_ROWWISE:
        rows = fp8.per_channel(weight)
        return {"weight": rows.values, "per_channel_scale": rows.scale}, rows.dequantize()
    if scheme.form == QSERVE_GROUP:
        grouped = qserve.per_group(weight)
        made = {"weight": grouped.integers, "s1_scales": grouped.s1, "s2_scales": grouped.s2}
        return made | {"s2_zeros": -grouped.zero * grouped.s2}, grouped.dequantize()
    assert scheme.form == QSERVE_CHANNEL
    channels = qserve.per_channel(weight)
    made = {"weight": channels.integers, "s1_scales": channels.s1, "s1_szeros": channels.scaled_zero}
    return made, channels.dequantize()
