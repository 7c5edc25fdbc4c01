"""WeightOnlyQuantMatmul: float activations times 8- or 4-bit weights with one scale per output channel."""

from __future__ import annotations

from collections.abc import Callable

from . import few_tokens, float_product, kernels
from .float_product import FloatProduct
from .identity import INTEGER, Plugin
from .lazy import torch

# int8 [out, in] of so many bits -> the packed integers, and the name of their order.
Arranged = Callable[["torch.Tensor", int], tuple["torch.Tensor", str]]
PLUGIN = Plugin(
    "WeightOnlyQuantMatmul",
    ("type_id", "weight_type_id"),
    "weight_only_quant_matmul_plugin",
    "linear",
    gpus=INTEGER,
    in_multiple=64,
    out_multiple=32,
)


def dequantized(weight: torch.Tensor, per_channel_scale: torch.Tensor) -> torch.Tensor:
    """weight * scale, rounded to the scale's dtype: int8 [out, in] and [out] give [out, in]."""
    return (weight.float() * per_channel_scale.float()[:, None]).to(per_channel_scale.dtype)


def reference(
    x: torch.Tensor, weight: torch.Tensor, per_channel_scale: torch.Tensor, bits: int, sm: int
) -> torch.Tensor:
    """y = x @ (weight * scale).T, the weight rounded to the engine's dtype before the product.

    Sums are float32, but for up to four tokens (``few_tokens``).

    Args:
        x: [tokens, in] in the engine's dtype.
        weight: int8 [out, in], unpacked.
        per_channel_scale: [out] in the engine's dtype.
        bits: of an integer as it is packed.
        sm: the GPU generation that integers are arranged for.

    Returns:
        [tokens, out] in x's dtype.
    """
    w = dequantized(weight, per_channel_scale)
    if len(x) <= few_tokens.MOST_TOKENS:
        return few_tokens.product(x, w, few_tokens.Threads.of(bits, sm)).to(x.dtype)
    return (x.float() @ w.float().t()).to(x.dtype)


def prepare(
    weight: torch.Tensor, per_channel_scale: torch.Tensor, dtype: torch.dtype, bits: int, arranged: Arranged
) -> FloatProduct:
    """``reference`` for many calls, however few tokens come as the kernel for many of them computes it.

    On a GPU the integers stay packed; elsewhere, and in float32, the weight is dequantized.

    Args:
        dtype: of x, the scale's or float32.
        arranged: gives the order in which kernels read integers.
    """
    if not kernels.behind_packed(weight, dtype):
        return float_product.prepare(dequantized(weight, per_channel_scale).to(dtype))
    from .weight_only_quant_matmul_triton import run

    packed, layout = arranged(weight, bits)
    return lambda x: run(x, packed, per_channel_scale, bits=bits, layout=layout)
