"""LayernormQuantization: layer norm with mean and bias, its output quantized or not."""

from __future__ import annotations

from .arithmetic import fma, reciprocal_root, warp_sum
from .identity import Plugin
from .kernels import beside
from .lazy import torch
from .quantized_rows import quantized
from .rmsnorm_quantization import Normed

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
    factor = reciprocal_root(fma(-mean, mean, mean_square) + eps)
    added = torch.zeros_like(weight) if bias is None else bias
    return fma((y - mean) * factor, weight, added.float()).to(x.dtype)


def thread_count(hidden: int) -> int:
    """Threads of the block that has a row: whole warps."""
    return -(-min(hidden, MOST_THREADS) // WARP) * WARP


def block_sum(terms: torch.Tensor, hidden: int) -> torch.Tensor:
    """The sum of every row in the order of a thread block: each thread strides through the row, warps sum by halves.

    Args:
        terms: float32 [tokens, n].
        hidden: channels of the layer, which decide the number of threads.

    Returns:
        float32 [tokens, 1].
    """
    threads = thread_count(hidden)
    strides = torch.nn.functional.pad(terms, (0, -terms.shape[1] % threads)).unflatten(1, (-1, threads))
    total = strides[:, 0]
    for i in range(1, strides.shape[1]):
        total = total + strides[:, i]
    warps = warp_sum(total.unflatten(1, (-1, WARP))).squeeze(2)
    return warp_sum(torch.nn.functional.pad(warps, (0, WARP - warps.shape[1])))


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    *,
    residual: torch.Tensor | None = None,
    kind: str | None = None,
    scale: torch.Tensor | None = None,
) -> Normed:
    """Add the residual, normalize, then quantize per token, or with a static scale, or not.

    Args:
        x: [tokens, hidden] in the engine's dtype, hidden even.
        weight, bias: [hidden]; a missing bias is 0.
        residual: [tokens, hidden] in x's dtype.
        kind: of what leaves: "int8", "fp8", or None for x's dtype.
        scale: float32 [1]; INT8: 127 / range, FP8: range / 448; without it, per token.
    """
    hidden = x if residual is None else x + residual
    return Normed(hidden, *quantized(layer_norm(hidden, weight, bias, eps), kind, scale))


run = beside(reference, "layernorm_quantization_triton")
