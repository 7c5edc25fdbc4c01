"""LayernormQuantization: layer norm with mean and bias whose output leaves as INT8."""

from __future__ import annotations

from . import quantize_per_token, quantize_tensor
from .arithmetic import fma, warp_sum
from .identity import Plugin
from .lazy import torch

PLUGIN = Plugin(
    "LayernormQuantization",
    ("eps", "use_diff_of_squares", "dyn_act_scaling", "type_id"),
    "layernorm_quantization_plugin",
    "layernorm",
)
WARP, MOST_THREADS = 32, 1024


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, in float32, stored in x's dtype.

    The network asks for the variance as mean(x^2) - mean^2. Where the mean is many deviations from 0 most of its digits
    cancel, and what is left depends on the order of summation: that of the kernel, which takes channels in pairs.

    Args:
        x: [tokens, hidden], hidden even.
        weight, bias: [hidden]; a missing bias is 0.
    """
    y, width = x.float(), x.shape[-1]
    first, second = y[:, 0::2], y[:, 1::2]
    count = torch.full_like(y[:, :1], width)
    mean = block_sum(first + second, width) / count
    mean_square = block_sum(fma(first, first, second * second), width) / count
    factor = torch.rsqrt(fma(-mean, mean, mean_square) + eps)
    added = torch.zeros_like(weight) if bias is None else bias
    return fma((y - mean) * factor, weight, added.float()).to(x.dtype)


def block_sum(terms: torch.Tensor, hidden: int) -> torch.Tensor:
    """The sum of every row in the order of a thread block: each thread strides through the row, warps sum by halves.

    Args:
        terms: float32 [tokens, n].
        hidden: channels of the layer, which decide the number of threads.

    Returns:
        float32 [tokens, 1].
    """
    threads = -(-min(hidden, MOST_THREADS) // WARP) * WARP
    strides = torch.nn.functional.pad(terms, (0, -terms.shape[1] % threads)).unflatten(1, (-1, threads))
    total = strides[:, 0]
    for i in range(1, strides.shape[1]):
        total = total + strides[:, i]
    warps = warp_sum(total.unflatten(1, (-1, WARP))).squeeze(2)
    return warp_sum(torch.nn.functional.pad(warps, (0, WARP - warps.shape[1])))


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
