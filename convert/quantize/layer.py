"""One decoder layer from floating point to the tensors of its schemes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..models.family import Group
from ..models.layer import Layer, Tensors
from ..numbers.rounding import Grouped
from ..statistics.layer import LayerStatistics, Wanted
from . import direct, groupwise, half_range, kv_cache, smoothquant
from .options import QuantizeOptions
from .scheme import FLOAT, LayerSchemes, Scheme


def wanted(scheme: Scheme, options: QuantizeOptions) -> Wanted:
    """What calibration must learn for a scheme."""
    return Wanted(
        tokens=scheme.smoothquant,
        gram=(scheme.grouped and not options.repacks) or options.gptq(scheme),
        ranges=scheme.static,
        outputs=scheme.plugin and scheme.static,
        cache=scheme.kv_cache is not None,
    )


def quantize_layer(
    layer: Layer,
    statistics: LayerStatistics,
    schemes: LayerSchemes,
    options: QuantizeOptions,
    dtype: torch.dtype,
    ready: Mapping[str, Grouped] | None = None,
) -> tuple[Tensors, dict[str, Any]]:
    """All tensors of a layer, whole (before any cut over ranks), and what was chosen.

    Args:
        layer: the layer; afterwards it computes what weight-only schemes' tensors do.
        dtype: the engine's; what an engine of float16 could not hold is refused.
        ready: each Hugging Face linear as someone else quantized it, where it is kept so.
    """
    family, report, tensors = layer.model.family, dict[str, Any](), Tensors()
    cache = schemes[family.groups[0].name].kv_cache
    if cache == "INT8" and options.fold and ready is None:
        statistics = balanced(layer, statistics, schemes, dtype)
    for scheme in dict.fromkeys(schemes.values()):
        groups = [group for group in family.groups if schemes[group.name] == scheme]
        chosen: dict[str, Any] = {}
        if ready is not None and scheme.form != FLOAT:
            made = groupwise.repacked(layer, groups, ready, scheme, dtype)
        elif scheme.form == FLOAT:
            made = floating(layer, groups)
        elif scheme.smoothquant:
            made, chosen = smoothquant.quantize_groups(layer, groups, statistics, scheme, options)
        elif scheme.grouped:
            made, chosen = groupwise.quantize_groups(layer, groups, statistics, scheme, options, dtype)
        else:
            made, chosen = direct.quantize_groups(layer, groups, statistics, scheme, options, dtype)
        tensors |= made
        report |= chosen
    if cache is not None:
        scale = kv_cache.cache_scale(cache, statistics, layer.folded.get(family.attention[2], 1.0))
        tensors["attention.kv_cache_scaling_factor"] = scale
        report["kv_cache"] = {"scale": float(scale)}
    if dtype == torch.float16:
        half_range.check(layer, statistics)
    return layer.common() | tensors, report


def balanced(layer: Layer, statistics: LayerStatistics, schemes: LayerSchemes, dtype: torch.dtype) -> LayerStatistics:
    """Values that reach as far as keys, where SmoothQuant will not see to it by itself."""
    family = layer.model.family
    dense = next(group for group in family.groups if group.feeder == family.attention[2])
    together = [group for group in family.groups if schemes[group.name] == schemes[dense.name]]
    if schemes[dense.name].smoothquant and layer.may_fold(dense, together):
        return statistics
    floating = [part for group in family.groups if schemes[group.name].form == FLOAT for part in family.parts(group)]
    return kv_cache.balance(layer, dense, statistics, floating, dtype)


def floating(layer: Layer, groups: Sequence[Group]) -> Tensors:
    """Linears that stay as they are: fused where TensorRT-LLM fuses."""
    names = [name for group in groups for name in group.linears]
    return {f"{name}.weight": layer.weight(layer.model.family.linear(name)) for name in names}
