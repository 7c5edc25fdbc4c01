"""One decoder layer from floating point to what its schemes make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import InputError
from ..models.layer import Layer, Tensors
from ..models.pieces import Group
from ..numbers.quantized import QuantizedLinear
from ..statistics.calibrate import Walk
from ..statistics.layer import LayerStatistics
from . import direct, groupwise, half_range, kv_cache, smoothquant
from .options import QuantizeOptions
from .scheme import Computed, LayerSchemes, Scheme


@dataclass(frozen=True)
class CacheReach:
    """How far keys (rotated) and values of a quantized KV cache reach: the largest |key| and |value|."""

    key: float
    value: float

    @staticmethod
    def of(statistics: LayerStatistics, folded: torch.Tensor | float) -> CacheReach:
        """Of what calibration saw; folded: what smoothing divided the values by, [kv_size]."""
        assert statistics.key_amax is not None
        assert statistics.value_amax is not None
        return CacheReach(float(statistics.key_amax.max()), float((statistics.value_amax / folded).max()))


@dataclass(frozen=True)
class QuantizedLayer:
    """A quantized layer.

    Attributes:
        linears: by the family's names.
        common: weights of norms and biases of linears, float32, by the family's names.
        cache_scale: of a quantized KV cache whose keys and values share it, float32 [1].
        cache: how far they reach, where they do not.
        chosen: what the manifest says of it.
        layer: what the layer computes, in float32; weights of smoothed linears not yet rounded.
    """

    linears: dict[str, QuantizedLinear]
    common: Tensors
    cache_scale: torch.Tensor | None
    cache: CacheReach | None
    chosen: dict[str, Any]
    layer: Layer


def quantize_layer(
    layer: Layer,
    statistics: LayerStatistics,
    schemes: LayerSchemes,
    options: QuantizeOptions,
    dtype: torch.dtype,
    computed: Computed,
    cache: str | None = None,
    ready: Mapping[str, QuantizedLinear] | None = None,
) -> QuantizedLayer:
    """All linears of a layer, whole (before any cut over ranks).

    Args:
        layer: the layer; afterwards it computes what the result does.
        dtype: the engine's; what an engine of float16 could not hold is refused.
        computed: the weight that the engine will multiply with.
        cache: what the KV cache is quantized to, or None.
        ready: each Hugging Face linear as someone else quantized it, where it is kept so.
    """
    report, linears = dict[str, Any](), dict[str, QuantizedLinear]()
    if cache == "INT8" and options.fold and ready is None:
        statistics = balanced(layer, statistics, schemes, dtype)
    for scheme in dict.fromkeys(schemes.values()):
        groups = [group for group in layer.model.family.groups if schemes[group.name] == scheme]
        if ready is not None and scheme.quantized:
            made, chosen = groupwise.repacked(layer, groups, ready, scheme, computed)
        else:
            made, chosen = quantize_groups(layer, groups, statistics, scheme, options, dtype, computed)
        linears |= made
        report |= chosen
    return completed(layer, linears, report, statistics, dtype, cache)


def quantize_walking(
    layer: Layer,
    walk: Walk,
    schemes: LayerSchemes,
    options: QuantizeOptions,
    dtype: torch.dtype,
    computed: Computed,
    cache: str | None = None,
) -> QuantizedLayer:
    """The same of weight-only schemes, each group of linears on what the quantized ones before it compute.

    Args:
        walk: through the layer; its hidden states are behind it afterwards.
    """
    report, linears, statistics = dict[str, Any](), dict[str, QuantizedLinear](), walk.seen
    for group in walk.groups():
        if cache == "INT8" and options.fold and not linears:
            statistics = balanced(layer, statistics, schemes, dtype)
        try:
            made, chosen = quantize_groups(layer, [group], walk.seen, schemes[group.name], options, dtype, computed)
        except InputError:
            if dtype == torch.float16:
                half_range.check(layer, walk.seen)  # then its range is what is wrong
            raise
        linears |= made
        report |= chosen
    whole = replace(walk.seen, key_amax=statistics.key_amax, value_amax=statistics.value_amax)
    return completed(layer, linears, report, whole, dtype, cache)


def quantize_groups(
    layer: Layer,
    groups: Sequence[Group],
    statistics: LayerStatistics,
    scheme: Scheme,
    options: QuantizeOptions,
    dtype: torch.dtype,
    computed: Computed,
) -> tuple[dict[str, QuantizedLinear], dict[str, Any]]:
    """The linears, by name, of groups that one scheme quantizes, and what was chosen for them."""
    if not scheme.quantized:
        return floating(layer, groups), {}
    if scheme.smooths:
        return smoothquant.quantize_groups(layer, groups, statistics, scheme, options, dtype)
    quantize = groupwise.quantize_groups if scheme.grouped else direct.quantize_groups
    return quantize(layer, groups, statistics, scheme, options, dtype, computed)


def completed(
    layer: Layer,
    linears: dict[str, QuantizedLinear],
    report: dict[str, Any],
    statistics: LayerStatistics,
    dtype: torch.dtype,
    cache: str | None,
) -> QuantizedLayer:
    """The layer of linears that are quantized: what else it stores, and that the engine's dtype holds what it makes."""
    scale = reach = None
    if statistics.tokens:
        first = (mlp.first[0].name for mlp in layer.model.family.experts)
        report["experts"] = {"tokens": [statistics.tokens[name] for name in first]}
    if cache is not None:
        folded = layer.folded.get(layer.model.family.attention[2], 1.0)
        scale, reach = kv_cache.cache_scale(cache, statistics, folded), CacheReach.of(statistics, folded)
        report["kv_cache"] = {"scale": float(scale)}
    if dtype == torch.float16:
        half_range.check(layer, statistics)
    common = layer.common()
    layer.set_common({name: tensor.to(dtype) for name, tensor in common.items()})
    return QuantizedLayer(linears, common, scale, reach, report, layer)


def balanced(layer: Layer, statistics: LayerStatistics, schemes: LayerSchemes, dtype: torch.dtype) -> LayerStatistics:
    """Values that reach as far as keys, where SmoothQuant will not see to it by itself."""
    family = layer.model.family
    dense = next(group for group in family.groups if group.feeder == family.attention[2])
    together = [group for group in family.groups if schemes[group.name] == schemes[dense.name]]
    if schemes[dense.name].smooths and layer.may_fold(dense, together):
        return statistics
    floating = [part for group in family.groups if not schemes[group.name].quantized for part in family.parts(group)]
    return kv_cache.balance(layer, dense, statistics, floating, dtype)


def floating(layer: Layer, groups: Sequence[Group]) -> dict[str, QuantizedLinear]:
    """Linears that stay as they are."""
    names = [name for group in groups for name in group.linears]
    weights = {name: layer.weight(layer.model.family.linear(name)) for name in names}
    return {name: QuantizedLinear(weight, weight.new_ones(1)) for name, weight in weights.items()}
