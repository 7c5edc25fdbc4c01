"""One decoder layer from floating point to the tensors of a scheme."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from . import direct, groupwise, smoothquant
from .calibrate import LayerStatistics, Wanted
from .layer import Layer, Tensors
from .options import QuantizeOptions
from .rounding import Grouped
from .scheme import FLOAT, Scheme


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
    scheme: Scheme,
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
    report: dict[str, Any] = {}
    if ready is not None:
        tensors = groupwise.repacked(layer, ready, scheme)
    elif scheme.form == FLOAT:
        tensors = floating(layer)
    elif scheme.smoothquant:
        tensors, report = smoothquant.quantize_layer(layer, statistics, scheme, options)
    elif scheme.grouped:
        tensors, report = groupwise.quantize_layer(layer, statistics, scheme, options, dtype)
    else:
        tensors, report = direct.quantize_layer(layer, statistics, scheme, options, dtype)
    if scheme.kv_cache == "INT8":
        tensors["attention.kv_cache_scaling_factor"] = smoothquant.cache_scale(
            statistics, layer.folded.get(smoothquant.VALUE, 1.0)
        )
    elif scheme.kv_cache == "FP8":
        tensors["attention.kv_cache_scaling_factor"] = torch.ones(1)
    return tensors, report


def floating(layer: Layer) -> Tensors:
    """A layer without weight quantization: fused where TensorRT-LLM fuses."""
    weights = {f"{linear.name}.weight": layer.weight(linear) for linear in layer.model.family.linears}
    return layer.common() | weights
