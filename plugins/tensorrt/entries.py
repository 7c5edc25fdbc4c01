"""Entries of the kernels for TensorRT, whose parameters are inputs, integers, outputs, in this order.

Each calls the kernel that stands behind the plugin in PyTorch, and so is equal to its reference to the bit. Sizes that
a layer's weight fixes are constants; the number of tokens is not.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .. import quantize_per_token_triton, rmsnorm_quantization_triton, scaled_gemm_triton

# What autotuning chooses schedules for; TensorRT chooses among tactics instead.
loaded, of_one = scaled_gemm_triton.loaded.fn, scaled_gemm_triton.of_one.fn
norm, quantize = rmsnorm_quantization_triton.kernel, quantize_per_token_triton.kernel


@triton.jit  # type: ignore[untyped-decorator]
def smooth_quant_gemm(  # type: ignore[no-untyped-def]
    x,
    weight,
    scale_a,
    scale_b,
    tokens,
    y,
    OUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    MOST_FEW: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Any number of tokens, by tiles; few of them are scaled in another order."""
    if tokens <= MOST_FEW:
        loaded(
            x, weight, scale_a, scale_b, y, y, tokens, OUT, CHANNELS, 0,
            PER_TOKEN, PER_CHANNEL, False, True, tl.int32, EVEN, BM, BN, BK,
        )  # fmt: skip
    else:
        loaded(
            x, weight, scale_a, scale_b, y, y, tokens, OUT, CHANNELS, 0,
            PER_TOKEN, PER_CHANNEL, False, False, tl.int32, EVEN, BM, BN, BK,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def smooth_quant_gemm_of_few(  # type: ignore[no-untyped-def]
    x,
    weight,
    scale_a,
    scale_b,
    y,
    OUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Few tokens, each by itself: one row of the grid computes one."""
    token = tl.program_id(1)
    if PER_TOKEN:
        scale_a += token
    of_one(
        x + token * CHANNELS, weight, scale_a, scale_b, y, y + token * OUT, OUT, CHANNELS,
        PER_TOKEN, PER_CHANNEL, False, True, tl.int32, False, BN, BK,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def rmsnorm_quantization(  # type: ignore[no-untyped-def]
    x, weight, q, scales, CHANNELS: tl.constexpr, EPS: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr
):
    norm(
        x, None, weight, x, q, scales, None, CHANNELS, 0, CHANNELS, EPS, "int8", False, False, False, PIECE, PIECES
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def add_rmsnorm_quantization(  # type: ignore[no-untyped-def]
    x, residual, weight, hidden, q, scales,
    CHANNELS: tl.constexpr, EPS: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    norm(
        x, residual, weight, hidden, q, scales, None, CHANNELS, CHANNELS, CHANNELS, EPS, "int8", False, False, False,
        PIECE, PIECES,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def quantize_per_token(  # type: ignore[no-untyped-def]
    x, q, scales, CHANNELS: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr
):
    quantize(x, None, q, scales, None, CHANNELS, CHANNELS, "int8", False, False, PIECE, PIECES)
