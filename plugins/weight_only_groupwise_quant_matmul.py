"""WeightOnlyGroupwiseQuantMatmul: AWQ and GPTQ weights, with a scale (and a zero) per group of input channels."""

from __future__ import annotations

from . import few_tokens, float_product, fp8, kernels
from .float_product import FloatProduct
from .identity import INTEGER, Plugin
from .kernels import beside
from .lazy import torch
from .packing import unpacked
from .weight_only_quant_matmul import Arranged

PLUGIN = Plugin(
    "WeightOnlyGroupwiseQuantMatmul",
    ("type_id", "quant_algo", "group_size"),
    "weight_only_groupwise_quant_matmul_plugin",
    "linear",
    gpus=INTEGER,
    in_multiple=64,
    out_multiple=32,
)
# Input channels that may share a scale.
GROUP_SIZES = (64, 128)
# Bits of quant_algo.
BIAS, ZERO, PRE_QUANT_SCALE, FP8_ALPHA, INT8_WEIGHT = 1, 2, 4, 8, 16


def fp8_scale(weights_scaling_factor: torch.Tensor, weights_scaling_factor_2: torch.Tensor) -> torch.Tensor:
    """W4A8_AWQ's scale as the loader hands it on, for weights that pass through FP8: float16 [in / group, out]."""
    return (weights_scaling_factor.float() / weights_scaling_factor_2).half()


def dequantized(
    weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None, sm: int | None = None
) -> torch.Tensor:
    """weight * scale + zero, [out, in] in the dtype of its scales, rounded once.

    On SM 90 the kernel for many tokens rounds twice in bfloat16: after the product, and after the sum.

    Args:
        weight: int8 [out, in], unpacked.
        scale, zero: [in / group, out].
        sm: the GPU generation of that kernel; None for few tokens.
    """
    grouped: torch.Tensor = weight.float().unflatten(1, (scale.shape[0], -1)) * scale.float().t()[..., None]
    if zero is not None:
        if sm == 90 and scale.dtype == torch.bfloat16:
            grouped = grouped.bfloat16()
        grouped = grouped.float() + zero.float().t()[..., None]
    return grouped.flatten(1).to(scale.dtype)


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    weights_scaling_factor: torch.Tensor,
    prequant_scaling_factor: torch.Tensor | None = None,
    zero: torch.Tensor | None = None,
    alpha: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    bits: int,
    sm: int,
) -> torch.Tensor:
    """y = alpha * (x p) @ (weight * scale + zero).T + bias.

    The dequantized weight is rounded to the dtype of its scales (``dequantized``). With alpha (W4A8_AWQ), x p and that
    weight are then converted to FP8. Sums are float32. Up to four tokens stay in the engine's dtype, sums included
    (``few_tokens``); there alpha goes into the scales.

    Args:
        x: [tokens, in] in the engine's dtype.
        weight: int8 [out, in], unpacked.
        weights_scaling_factor: [in / group, out]; in the engine's dtype, or float16 with alpha.
        prequant_scaling_factor: p, [1, in] or [in] in the engine's dtype; with alpha, already divided by the
            activation's scale.
        zero: [in / group, out], in the dtype of the scales: what is added, hence -zero point * scale.
        alpha: float32 [1], activation scale times second weight scale.
        bias: [out] in the engine's dtype.
        bits: of an integer as it is packed.
        sm: the GPU generation that integers are arranged for.

    Returns:
        [tokens, out] in x's dtype.
    """
    scaled = x if prequant_scaling_factor is None else x * prequant_scaling_factor.view(1, -1)
    scale = weights_scaling_factor
    if len(x) <= few_tokens.MOST_TOKENS:
        scale = scale if alpha is None else (scale.float() * alpha).to(x.dtype)
        threads = few_tokens.Threads.of(bits, sm, fp8=alpha is not None)
        y = few_tokens.product(scaled, dequantized(weight, scale, zero), threads)
    elif alpha is None:
        y = scaled.float() @ dequantized(weight, scale, zero, sm).float().t()
    else:
        y = alpha * fp8.matmul(fp8.saturate(scaled.float()), fp8.saturate(dequantized(weight, scale, zero, sm).float()))
    return (y if bias is None else y + bias.float()).to(x.dtype)


def by_output(scale: torch.Tensor) -> torch.Tensor:
    """[groups, out] with an output's groups side by side in memory, as kernels read them fastest."""
    return scale.t().contiguous().t()


def prepare(
    weight: torch.Tensor,
    weights_scaling_factor: torch.Tensor,
    prequant_scaling_factor: torch.Tensor | None = None,
    zero: torch.Tensor | None = None,
    alpha: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    dtype: torch.dtype,
    bits: int,
    sm: int | None,
    arranged: Arranged | None = None,
) -> FloatProduct:
    """``reference`` for many calls, however few tokens come as the kernel for many of them computes it.

    On a GPU the integers stay packed, unless they pass through FP8; elsewhere, and in float32, the weight is
    dequantized.

    Args:
        dtype: of x, the engine's or float32.
        arranged: gives the order in which kernels read integers; without it none does.
    """
    prequant = None if prequant_scaling_factor is None else prequant_scaling_factor.view(1, -1)
    if arranged is not None and alpha is None and kernels.behind_packed(weight, dtype):
        from .packed_fields_triton import sums_exactly
        from .weight_only_groupwise_quant_matmul_triton import run

        packed, layout = arranged(weight, bits)
        scale, zeros = by_output(weights_scaling_factor), None if zero is None else by_output(zero)
        once = zeros is not None and bits == 4 and sums_exactly(scale, zeros)
        return lambda x: run(x, packed, scale, prequant, zeros, bias=bias, bits=bits, layout=layout, sm=sm, once=once)
    held = dequantized(weight, weights_scaling_factor, zero, sm)
    if alpha is None:
        run_float = float_product.prepare(held.to(dtype), bias)
        return run_float if prequant is None else lambda x: run_float(x * prequant)
    rounded, added = fp8.saturate(held.float()).float(), 0.0 if bias is None else bias.float()

    def through_fp8(x: torch.Tensor) -> torch.Tensor:
        read = fp8.saturate((x if prequant is None else x * prequant).float())
        return (alpha * fp8.matmul(read, rounded) + added).to(x.dtype)

    return through_fp8


def reference_packed(
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
) -> torch.Tensor:
    """``reference`` of integers as they are packed, however few tokens come as the kernel for many computes it.

    Args:
        packed: integers, in whatever dtype their bytes are viewed as.
        layout: their order, one of ``packing``'s.
    """
    weight = unpacked(packed, (weights_scaling_factor.shape[1], x.shape[1]), bits, layout)
    factors = weights_scaling_factor, prequant_scaling_factor, zero, alpha, bias
    return prepare(weight, *factors, dtype=x.dtype, bits=bits, sm=sm)(x)


run_packed = beside(reference_packed, "weight_only_groupwise_quant_matmul_triton")
