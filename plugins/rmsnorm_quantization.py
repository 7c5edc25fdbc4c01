"""RmsnormQuantization: RMS layer norm, its output quantized as by QuantizePerToken or QuantizeTensor."""

from __future__ import annotations

from typing import NamedTuple

from .arithmetic import reciprocal_root, sum_in_any_order
from .identity import Plugin
from .kernels import beside
from .lazy import torch
from .quantized_rows import quantized

PLUGIN = Plugin(
    "RmsnormQuantization",
    ("eps", "dyn_act_scaling", "sum_per_token", "clamp_enabled", "quant_mode", "type_id", "out_type_id"),
    "rmsnorm_quantization_plugin",
    "rmsnorm",
)


class Normed(NamedTuple):
    """Attributes:

    hidden: [tokens, hidden], what was normalized: x, or x + residual rounded to x's dtype.
    y_or_q: [tokens, hidden] int8 or e4m3, or in x's dtype where nothing quantizes.
    scale: float32 [tokens, 1] of rows that were quantized per token.
    """

    hidden: torch.Tensor
    y_or_q: torch.Tensor
    scale: torch.Tensor | None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, in float32, stored in x's dtype. x: [tokens, hidden].

    The mean is of float32 squares: ``sum_in_any_order`` of them, times 1 / hidden, rounded to float32.
    """
    y = x.float()
    mean = sum_in_any_order(y.square()).mul_(1 / x.shape[-1]).float()
    return (y * reciprocal_root(mean.add_(eps))).mul_(weight).to(x.dtype)


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    residual: torch.Tensor | None = None,
    kind: str | None = None,
    scale: torch.Tensor | None = None,
) -> Normed:
    """Add the residual, normalize, then quantize per token, or with a static scale, or not.

    Args:
        x: [tokens, hidden] in the engine's dtype.
        weight: [hidden].
        residual: [tokens, hidden] in x's dtype.
        kind: of what leaves: "int8", "fp8", or None for x's dtype.
        scale: float32 [1]; INT8: 127 / range, FP8: range / 448; without it, per token.
    """
    hidden = x if residual is None else x + residual
    return Normed(hidden, *quantized(rms_norm(hidden, weight, eps), kind, scale))


run = beside(reference, "rmsnorm_quantization_triton")
