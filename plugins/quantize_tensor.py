"""QuantizeTensor: INT8 or FP8 activations with one calibrated scale."""

from __future__ import annotations

from .identity import Plugin
from .kernels import beside
from .lazy import torch
from .quantized_rows import INT8, smoothed, static

PLUGIN = Plugin(
    "QuantizeTensor",
    (),
    "quantize_tensor_plugin",
    "input",
    typed=False,
)


def reference(
    x: torch.Tensor, scale: torch.Tensor, smoother: torch.Tensor | None = None, *, kind: str = INT8
) -> torch.Tensor:
    """q = round(x * scale), saturated; FP8: q = x / scale, the scale rounded to x's dtype.

    Args:
        x: [tokens, channels] in the engine's dtype.
        scale: float32 [1]; INT8: 127 / range (quantization_scaling_factor), FP8: range / 448.
        smoother: [channels]; x is divided by it first, in its own dtype.
        kind: "int8" or "fp8".

    Returns:
        int8 or e4m3 [tokens, channels].
    """
    return static(smoothed(x, smoother), scale, kind)


run = beside(reference, "quantize_tensor_triton")
