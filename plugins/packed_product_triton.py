"""x times a packed weight, in Triton; what both weight-only plugins' kernels share.

Of one token, tensor cores sum what lanes have multiplied (``packed_one_triton``); up to ``MOST_TOKENS``, they multiply
tiles (``packed_few_triton``). Beyond, the weight is dequantized into memory. Dequantized weights and prescaled inputs
are equal to the bit; sums of float32 differ by their order, which depends on shapes alone.
"""

from __future__ import annotations

from typing import Any

import torch

from . import packed_few_triton, packed_one_triton
from .packed_weight_triton import dequantize, group_of, rounds_twice, words_of

# The bound of a sum's error, over the sum of its products' absolute values, per channel: tensor cores cut off, of 17
# addends for 16 channels, what lies beyond 24 bits of the largest.
ERROR = 2.0**-22
# Tokens for which a weight is read as it is packed.
MOST_TOKENS = 64


def product(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    prescale: torch.Tensor | None = None,
    zero: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    bits: int,
    layout: str,
    sm: int | None = None,
    once: bool = False,
) -> torch.Tensor:
    """y = (x p) @ (weight * scale + zero).T + bias, [tokens, out] in x's dtype.

    Args:
        x: [tokens, in], float16 or bfloat16; rows lie one after the other.
        packed: the checkpoint's bytes, in whatever dtype they are viewed as.
        scale, zero: [in / group, out] at any strides, or [1, out] with one scale per channel; x's dtype.
        prescale: p, [in] or [1, in] in x's dtype; x p is rounded to it.
        bias: [out] in x's dtype, added before the sum is rounded.
        bits: of an integer, 4 or 8.
        layout: one of ``LAYOUTS``.
        sm: as for ``dequantized``.
        once: ``sums_exactly`` says yes of scale and zero; weights are the same, sooner.
    """
    out, channels = scale.shape[1], x.shape[1]
    if len(x) > MOST_TOKENS:
        scaled = x if prescale is None else x * prescale.view(1, -1)
        weight = dequantize(packed, scale, zero, sm, out=out, bits=bits, layout=layout)
        return torch.nn.functional.linear(scaled, weight, bias)
    how: dict[str, Any] = {"bits": bits, "layout": layout, "twice": rounds_twice(sm, x.dtype), "once": once}
    if len(x) > 1:
        return packed_few_triton.product(x, packed, scale, prescale, zero, bias, **how)
    if not len(x):
        return x.new_empty(0, out)
    group, step = group_of(scale, channels)
    words = words_of(packed)
    return packed_one_triton.product(x, words, scale, prescale, zero, bias, group=group, whole=step == 0, **how)
