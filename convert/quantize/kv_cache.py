"""The one scale that keys and values of a quantized KV cache share.

    INT8    scale = max(|key|, |value|) / 127: what is smaller than a step is lost, so both should reach equally far
    FP8     scale = 1, unless something does not fit e4m3's range; then the least power of two with which it does

An INT8 cache whose values reach less far than its keys gets values that do, by a power of two c that moves between
weights, v_proj / c and o_proj * c: the float model computes the same to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import torch

from ...plugins import fp8
from ..models.layer import Layer
from ..models.pieces import Group
from ..numbers.inputs import InputStatistics
from ..numbers.rounding import SMALLEST
from ..statistics.layer import LayerStatistics

# An FP8 cache keeps scale 1 for a largest value down to this; values below 2^-9 of it hardly count.
LEAST_FP8_RANGE = 0.25


def cache_scale(kind: str, statistics: LayerStatistics, folded: torch.Tensor | float = 1.0) -> torch.Tensor:
    """The scale, float32 [1].

    Keys count as the cache holds them, after the rotary embedding. Queries never are in the cache; but where prompt
    attention computes in FP8, TensorRT-LLM rounds them with this scale too, so an FP8 scale covers them.

    Args:
        kind: "INT8" or "FP8".
        folded: what smoothing divided the values by, [kv_size].
    """
    assert statistics.key_amax is not None
    assert statistics.value_amax is not None
    largest = torch.maximum(statistics.key_amax.max(), (statistics.value_amax / folded).max())
    if kind == "INT8":
        return torch.where(largest > SMALLEST, largest, 1.0)[None] / 127
    assert statistics.query_amax is not None
    return torch.tensor([fp8_scale(max(float(largest), float(statistics.query_amax.max()) * math.sqrt(2)))])


def fp8_scale(largest: float) -> float:
    """1, or the least power of two that brings what is too large, or all too small, into e4m3's range."""
    if LEAST_FP8_RANGE <= largest <= fp8.MAX or largest <= SMALLEST:
        return 1.0
    return float(2.0 ** math.ceil(math.log2(largest / fp8.MAX)))


def value_over_key(statistics: LayerStatistics, folded: torch.Tensor | float = 1.0) -> float:
    """How much further values (divided by ``folded``) reach than keys; 1 where either is not known, or 0."""
    if statistics.key_amax is None or statistics.value_amax is None:
        return 1.0
    key, value = float(statistics.key_amax.max()), float((statistics.value_amax / folded).max())
    return value / key if key > 0 and value > 0 else 1.0


def balance(
    layer: Layer, group: Group, statistics: LayerStatistics, floating: Collection[str], dtype: torch.dtype
) -> LayerStatistics:
    """Make values reach about as far as keys, exactly: returns the statistics of the layer as it is then.

    Args:
        group: the linears that read what attention makes of the values.
        floating: Hugging Face linears that are stored in the engine's dtype; where that could not hold them, nothing is
            moved.
        dtype: the engine's.
    """
    value, readers = layer.model.family.attention[2], layer.model.family.parts(group)
    c = 2.0 ** round(math.log2(value_over_key(statistics)))
    times = {value: 1 / c} | dict.fromkeys(readers, c)
    kept = all(same_digits(layer.weights[part], times[part], dtype) for part in times if part in floating)
    if c == 1 or statistics.value_amax is None or not kept:
        return statistics
    for part, factor in times.items():
        layer.weights[part] = layer.weights[part] * factor
    inputs, outputs = dict(statistics.inputs), dict(statistics.output_amax)
    if value in layer.biases:
        layer.biases[value] = layer.biases[value] / c
    if group.name in inputs:
        inputs[group.name] = divided(inputs[group.name], c)
    if value in outputs:
        outputs[value] = outputs[value] / c
    return replace(statistics, inputs=inputs, output_amax=outputs, value_amax=statistics.value_amax / c)


def same_digits(weight: torch.Tensor, factor: float, dtype: torch.dtype) -> bool:
    """Whether a weight times a power of two rounds to the same digits in a dtype."""
    return torch.equal((weight * factor).to(dtype).float() / factor, weight.to(dtype).float())


def divided(seen: InputStatistics, c: float) -> InputStatistics:
    """The statistics of an input that is divided by a number."""
    gram = None if seen.gram is None else seen.gram / c**2
    magnitude = None if seen.magnitude is None else seen.magnitude / c
    return InputStatistics(seen.amax / c, seen.tokens / c, seen.weight, gram, magnitude)
