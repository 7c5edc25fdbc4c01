"""FP8 with one scale per tensor: TensorRT's own quantize and dequantize layers, or the Gemm plugin with FP8 inputs.

Either way the product of the FP8 values is scaled once, which is what the reference computes.
"""

from __future__ import annotations

from . import fp8
from .identity import FP8, Generations
from .lazy import torch

GPUS: Generations = FP8


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    activation_scaling_factor: torch.Tensor,
    weights_scaling_factor: torch.Tensor,
) -> torch.Tensor:
    """y = (fp8(x / s_x) @ weight.T) * s_x * s_w.

    Args:
        x: [tokens, in] in the engine's dtype.
        weight: e4m3 [out, in].
        activation_scaling_factor: s_x, float32 [1]; the quantize layer rounds it to the engine's dtype.
        weights_scaling_factor: s_w, float32 [1].

    Returns:
        [tokens, out] in x's dtype.
    """
    quantized = fp8.saturate(x.float() / activation_scaling_factor.to(x.dtype).float())
    return (fp8.matmul(quantized, weight) * (activation_scaling_factor * weights_scaling_factor)).to(x.dtype)
