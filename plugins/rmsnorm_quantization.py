"""RmsnormQuantization: RMS layer norm, its output quantized as by QuantizePerToken or QuantizeTensor."""

from __future__ import annotations

from .identity import Plugin
from .lazy import torch

PLUGIN = Plugin(
    "RmsnormQuantization",
    ("eps", "dyn_act_scaling", "sum_per_token", "clamp_enabled", "quant_mode", "type_id", "out_type_id"),
    "rmsnorm_quantization_plugin",
    "rmsnorm",
)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, in float32, stored in x's dtype. x: [tokens, hidden]."""
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)
