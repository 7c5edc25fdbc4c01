"""Fp8RowwiseGemm: FP8 activations times FP8 weights, scaled per token and per output channel."""

from __future__ import annotations

from . import fp8
from .identity import FP8_SCALED, Plugin
from .kernels import beside
from .lazy import torch

PLUGIN = Plugin(
    "Fp8RowwiseGemm",
    ("has_per_channel_scaling", "has_per_token_scaling", "type_id"),
    "fp8_rowwise_gemm_plugin",
    "linear",
    gpus=FP8_SCALED,
    in_multiple=16,
    out_multiple=8,
)


def reference(
    x: torch.Tensor, weight: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """y = (x @ weight.T) * scale_a * scale_b.

    Args:
        x: e4m3 [tokens, in].
        weight: e4m3 [out, in].
        scale_a: float32 [tokens, 1].
        scale_b: float32 [out] (per_channel_scale).
        dtype: the engine's dtype.

    Returns:
        dtype [tokens, out].
    """
    return (fp8.matmul(x, weight) * (scale_a * scale_b)).to(dtype)


run = beside(reference, "scaled_gemm_triton")
