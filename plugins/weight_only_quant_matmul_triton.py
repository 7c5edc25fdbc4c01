"""WeightOnlyQuantMatmul on a GPU: the packed stream as it is read for few tokens, dequantized first for many.

Dequantized weights are equal to the bit; sums of float32 differ from the reference's by their order, so that an output
is within ``packed_product_triton.ERROR`` * in of |x| @ |weight|.T before the last rounding. Few tokens are no
exception, as they are in the engine.
"""

from __future__ import annotations

import torch

from . import packed_product_triton


def run(
    x: torch.Tensor,
    packed: torch.Tensor,
    per_channel_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    bits: int,
    layout: str,
) -> torch.Tensor:
    """y = x @ (weight * scale).T + bias, [tokens, out] in x's dtype.

    Args:
        x: [tokens, in], float16 or bfloat16.
        packed: the stream, in whatever dtype its bytes are viewed as.
        per_channel_scale: [out] in x's dtype.
        bias: [out] in x's dtype; added before the sum is rounded.
        bits: of an integer, 4 or 8.
        layout: "sm80" for SM 75 to 89, "sm90", or "rows".
    """
    return packed_product_triton.product(x, packed, per_channel_scale[None], bias=bias, bits=bits, layout=layout)
