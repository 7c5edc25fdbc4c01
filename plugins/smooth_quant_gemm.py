"""SmoothQuantGemm: INT8 activations times INT8 weights, scaled per row and per column.

Up to four tokens go to a kernel of their own (integer dot products instead of matrix units), which scales in another
order.
"""

from __future__ import annotations

from . import int8
from .identity import INTEGER, Plugin
from .kernels import beside
from .lazy import torch

PLUGIN = Plugin(
    "SmoothQuantGemm",
    ("has_per_channel_scaling", "has_per_token_scaling", "type_id"),
    "smooth_quant_gemm_plugin",
    "linear",
    gpus=INTEGER,
    in_multiple=16,
    out_multiple=8,
)


MOST_FEW_TOKENS = 4


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
    most_few: int = MOST_FEW_TOKENS,
) -> torch.Tensor:
    """y = (x @ weight.T) * (scale_a * scale_b); for few tokens ((x @ weight.T) * scale_b) * scale_a.

    Args:
        x: int8 [tokens, in].
        weight: int8 [out, in].
        scale_a: float32 [tokens, 1] (per token) or [1, 1] (act_scale).
        scale_b: float32 [1, out] or [1, 1] (per_channel_scale).
        dtype: the engine's dtype.
        bias: [out] in that dtype, added to the rounded product.
        most_few: so many tokens are few; 0 for the kernel that multiplies many, whatever comes.

    Returns:
        dtype [tokens, out].
    """
    product = int8.matmul(x, weight)  # times float32 it becomes that
    few = len(x) <= most_few
    y = (product * scale_b * scale_a if few else product * (scale_a * scale_b)).to(dtype)
    return y if bias is None else y + bias


run = beside(reference, "scaled_gemm_triton")
