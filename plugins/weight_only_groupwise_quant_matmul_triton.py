"""WeightOnlyGroupwiseQuantMatmul on a GPU: packed integers as they are read for few tokens, dequantized first for many.

Dequantized weights, and inputs times their prescale, are equal to the bit; sums of float32 differ from the reference's
by their order, so that an output is within ``packed_product_triton.ERROR`` * in of |x| @ |weight|.T before the last
rounding. Few tokens are no exception, as they are in the engine. With alpha (W4A8_AWQ) PyTorch multiplies.
"""

from __future__ import annotations

import torch

from . import fp8, packed_product_triton
from .packed_weight_triton import dequantize


def run(
    x: torch.Tensor,
    packed: torch.Tensor,
    weights_scaling_factor: torch.Tensor,
    prequant_scaling_factor: torch.Tensor | None = None,
    zero: torch.Tensor | None = None,
    alpha: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    bits: int,
    layout: str,
    sm: int | None = None,
    once: bool = False,
) -> torch.Tensor:
    """y = alpha * (x p) @ (weight * scale + zero).T + bias, as ``reference`` has it for many tokens.

    Args:
        x: [tokens, in], float16 or bfloat16.
        packed: integers as the checkpoint holds them, in whatever dtype their bytes are viewed as.
        weights_scaling_factor: [in / group, out], at any strides; in x's dtype, or float16 with alpha.
        prequant_scaling_factor: p, [1, in] or [in] in x's dtype.
        zero: [in / group, out], in the dtype of the scales and at their strides.
        alpha: float32 [1].
        bias: [out] in x's dtype; added before the sum is rounded.
        bits: of an integer, 4 or 8.
        layout: "rows", "sm80" for SM 75 to 89, "sm90", or "fp8", the stream up to SM 89 of weights that become FP8.
        sm: as for ``dequantized``: 90 rounds a bfloat16 weight with a zero twice.
        once: as for ``packed_product_triton.product``.

    Returns:
        [tokens, out] in x's dtype.
    """
    scale = weights_scaling_factor
    if alpha is None:
        prescale = prequant_scaling_factor
        return packed_product_triton.product(
            x, packed, scale, prescale, zero, bias, bits=bits, layout=layout, sm=sm, once=once
        )
    scaled = x if prequant_scaling_factor is None else x * prequant_scaling_factor.view(1, -1)
    weight = dequantize(packed, scale, zero, sm, out=scale.shape[1], bits=bits, layout=layout)
    y = alpha * fp8.matmul(fp8.saturate(scaled.float()), fp8.saturate(weight.float()))
    return (y if bias is None else y + bias.float()).to(x.dtype)
