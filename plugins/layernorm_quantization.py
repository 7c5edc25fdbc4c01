"""LayernormQuantization: layer norm with mean and bias whose output leaves as INT8."""

from __future__ import annotations

from . import quantize_per_token, quantize_tensor
from .identity import SMOOTHQUANT, Plugin
from .lazy import torch

PLUGIN = Plugin(
    "LayernormQuantization",
    ("eps", "use_diff_of_squares", "dyn_act_scaling", "type_id"),
    "layernorm_quantization_plugin",
    "layernorm",
    SMOOTHQUANT,
)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias, in float32, stored in x's dtype. x: [tokens, hidden]."""
    y = x.float()
    y = y - y.mean(-1, keepdim=True)
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight.float() + bias.float()).to(x.dtype)


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    scale_to_int: torch.Tensor,
    eps: float,
    per_token: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Normalize, then quantize per token, or with the static scale_to_int (127 / range).

    Args:
        x: [tokens, hidden] in the engine's dtype.
        weight, bias: [hidden].
        scale_to_int: float32 [1]; unused per token.

    Returns:
        int8 [tokens, hidden], and float32 [tokens, 1] per-token scales or None.
    """
    y = layer_norm(x, weight, bias, eps)
    if per_token:
        return quantize_per_token.reference(y)
    return quantize_tensor.reference(y, scale_to_int), None
