"""QuantizeTensor: INT8 activations with one calibrated scale."""

from __future__ import annotations

from . import int8
from .identity import Plugin
from .lazy import torch

PLUGIN = Plugin(
    "QuantizeTensor",
    (),
    "quantize_tensor_plugin",
    "input",
    typed=False,
)


def reference(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """q = round(x * scale), saturated; scale: float32 [1], 127 / range (quantization_scaling_factor)."""
    return int8.saturate(x * scale.view(1, 1))
