"""TensorRT's own quantize and dequantize layers around a matmul: W8A8_SQ_PER_CHANNEL has no plugin.

TensorRT fuses the pair around each matmul into one INT8 product, which is what the reference computes.
"""

from __future__ import annotations

from . import int8, smooth_quant_gemm
from .identity import INTEGER, Generations
from .lazy import torch

GPUS: Generations = INTEGER


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    prequant_scaling_factor: torch.Tensor,
    activation_scaling_factor: torch.Tensor,
    weights_scaling_factor: torch.Tensor,
) -> torch.Tensor:
    """y = (round(x * p / s_x) @ weight.T) * s_x * s_w.

    Args:
        x: [tokens, in] in the engine's dtype.
        weight: int8 [out, in].
        prequant_scaling_factor: p, [in] in the engine's dtype.
        activation_scaling_factor: s_x, float32 [1].
        weights_scaling_factor: s_w, float32 [out].

    Returns:
        [tokens, out] in x's dtype.
    """
    scaled = (x.float() * prequant_scaling_factor.float()).to(x.dtype)
    quantized = int8.saturate(scaled.float() / activation_scaling_factor)
    scales = activation_scaling_factor, weights_scaling_factor
    return smooth_quant_gemm.run(quantized, weight, *scales, x.dtype, most_few=0)
