"""RmsnormQuantization: RMS layer norm whose output leaves as INT8."""

from __future__ import annotations

from . import quantize_per_token, quantize_tensor
from .identity import FP8_ROWWISE, QSERVE, SMOOTHQUANT, Plugin
from .lazy import torch

PLUGIN = Plugin(
    "RmsnormQuantization",
    ("eps", "dyn_act_scaling", "sum_per_token", "clamp_enabled", "quant_mode", "type_id", "out_type_id"),
    "rmsnorm_quantization_plugin",
    "rmsnorm",
    SMOOTHQUANT + FP8_ROWWISE + QSERVE,
)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, in float32, stored in x's dtype. x: [tokens, hidden]."""
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def reference(
    x: torch.Tensor, weight: torch.Tensor, scale_to_int: torch.Tensor, eps: float, per_token: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Normalize, then quantize per token, or with the static scale_to_int (127 / range).

    Args:
        x: [tokens, hidden] in the engine's dtype.
        weight: [hidden].
        scale_to_int: float32 [1]; unused per token.

    Returns:
        int8 [tokens, hidden], and float32 [tokens, 1] per-token scales or None.
    """
    return quantize(rms_norm(x, weight, eps), scale_to_int, per_token)


def quantize(y: torch.Tensor, scale_to_int: torch.Tensor, per_token: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The second half of ``reference``, for an output y of the norm in the engine's dtype."""
    if per_token:
        return quantize_per_token.reference(y)
    return quantize_tensor.reference(y, scale_to_int), None
