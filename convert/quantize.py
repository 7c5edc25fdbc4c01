"""One decoder layer from floating point to the tensors of its schemes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from . import direct, groupwise, smoothquant
from .architectures import Group
from .calibrate import LayerStatistics, Wanted
from .layer import Layer, Tensors
from .options import QuantizeOptions
from .rounding import Grouped
from .scheme import FLOAT, LayerSchemes, Scheme


def wanted(scheme: Scheme, options: QuantizeOptions) -> Wanted:
    """What calibration must learn for a scheme."""
    return Wanted(
        tokens=scheme.smoothquant,
        gram=(scheme.grouped and not options.repacks) or options.gptq(scheme),
        ranges=scheme.static,
        outputs=scheme.plugin and scheme.static,
        cache=scheme.kv_cache == "INT8",
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
        dtype: the engine's.
        ready: each Hugging Face linear as someone else quantized it, where it is kept so.
    """
    family, report, tensors = layer.model.family, dict[str, Any](), Tensors()
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
    kv_cache = schemes[family.groups[0].name].kv_cache
    if kv_cache == "INT8":
        tensors["attention.kv_cache_scaling_factor"] = smoothquant.cache_scale(
            statistics, layer.folded.get(smoothquant.VALUE, 1.0)
        )
    elif kv_cache == "FP8":
        tensors["attention.kv_cache_scaling_factor"] = torch.ones(1)
    return layer.common() | tensors, report


def floating(layer: Layer, groups: Sequence[Group]) -> Tensors:
    """Linears that stay as they are: fused where TensorRT-LLM fuses."""
    names = [name for group in groups for name in group.linears]
    return {f"{name}.weight": layer.weight(layer.model.family.linear(name)) for name in names}
