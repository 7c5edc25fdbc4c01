"""QuantizeTensor: INT8 activations with one calibrated scale."""

from __future__ import annotations

from . import int8
from .identity import FP8_ROWWISE, SMOOTHQUANT_PER_TOKEN, SMOOTHQUANT_STATIC, Plugin
from .lazy import torch

PLUGIN = Plugin(
    "QuantizeTensor",
    (),
    "quantize_tensor_plugin",
    "input",
    SMOOTHQUANT_STATIC,
    enabled_by=SMOOTHQUANT_PER_TOKEN + FP8_ROWWISE,
    typed=False,
)


def reference(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """q = round(x * scale), saturated; scale: float32 [1], 127 / range (quantization_scaling_factor)."""
    return int8.saturate(x.float() * scale)
