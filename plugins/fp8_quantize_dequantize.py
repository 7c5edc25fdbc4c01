"""FP8 with one scale per tensor: TensorRT's own quantize and dequantize layers, or the Gemm plugin with FP8 inputs.

Either way the product of the FP8 values is scaled once, which is what the reference computes.
"""

from __future__ import annotations

from . import fp8_rowwise_gemm, identity, quantize_tensor
from .lazy import torch
from .quantized_rows import FP8

GPUS: identity.Generations = identity.FP8


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
    quantized = quantize_tensor.run(x, activation_scaling_factor, kind=FP8)
    return fp8_rowwise_gemm.run(quantized, weight, activation_scaling_factor, weights_scaling_factor, x.dtype)
