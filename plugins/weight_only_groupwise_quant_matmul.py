"""WeightOnlyGroupwiseQuantMatmul: AWQ and GPTQ weights, with a scale (and a zero) per group of input channels."""

from __future__ import annotations

from . import fp8
from .identity import GROUPWISE, INTEGER, Plugin
from .lazy import torch

PLUGIN = Plugin(
    "WeightOnlyGroupwiseQuantMatmul",
    ("type_id", "quant_algo", "group_size"),
    "weight_only_groupwise_quant_matmul_plugin",
    "linear",
    GROUPWISE,
    gpus=INTEGER,
    in_multiple=64,
    out_multiple=32,
)
# Bits of quant_algo.
BIAS, ZERO, PRE_QUANT_SCALE, FP8_ALPHA, INT8_WEIGHT = 1, 2, 4, 8, 16


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    weights_scaling_factor: torch.Tensor,
    prequant_scaling_factor: torch.Tensor | None = None,
    zero: torch.Tensor | None = None,
    alpha: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """y = alpha * (x p) @ (weight * scale + zero).T + bias.

    The dequantized weight is rounded once, to the dtype of its scales. With alpha (W4A8_AWQ), x p and that weight
    are then converted to FP8. This is the tensor-core kernel; for fewer than five tokens or so the plugin picks
    one that leaves both in float16, which is at least as accurate.

    Args:
        x: [tokens, in] in the engine's dtype.
        weight: int8 [out, in], unpacked.
        weights_scaling_factor: [in / group, out]; in the engine's dtype, or float16 with alpha.
        prequant_scaling_factor: p, [1, in] or [in] in the engine's dtype; with alpha, already divided by the
            activation's scale.
        zero: [in / group, out], in the dtype of the scales: what is added, hence -zero point * scale.
        alpha: float32 [1], activation scale times second weight scale.
        bias: [out] in the engine's dtype.

    Returns:
        [tokens, out] in x's dtype.
    """
    scaled = x if prequant_scaling_factor is None else x * prequant_scaling_factor.view(1, -1)
    grouped: torch.Tensor = weight.float().unflatten(1, (weights_scaling_factor.shape[0], -1))
    grouped = grouped * weights_scaling_factor.float().t()[..., None]
    if zero is not None:
        grouped = grouped + zero.float().t()[..., None]
    dequantized = grouped.flatten(1).to(weights_scaling_factor.dtype)
    if alpha is None:
        y = scaled.float() @ dequantized.float().t()
    else:
        y = alpha * fp8.matmul(fp8.saturate(scaled.float()), fp8.saturate(dequantized.float()))
    return (y if bias is None else y + bias.float()).to(x.dtype)
