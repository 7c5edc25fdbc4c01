"""layernorm_quantization.reference, one row a program, held in registers from its one read to its one write.

Its pieces are what the reference's thread block reads at a stride. Integers, scales and floats are equal to the bit:
the order of every sum is written out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arithmetic_triton import OPTIONS, fma, reciprocal_root, rounded
from .kernels import cdiv, power_of_two, starts_early
from .launches import Launches
from .layernorm_quantization import WARP, thread_count
from .quantized_rows_triton import (
    AT_ONCE,
    bytes_of,
    converts_fp8,
    few,
    outputs,
    piece_of,
    rows_of,
    wait,
    weights_of,
    write_per_token,
    write_static,
)
from .rmsnorm_quantization import Normed

FEW_CHANNELS = 4096
# Of more channels registers do not hold weights beside the row.
MOST_HELD_TWICE = 14336
LANES: tl.constexpr = tl.constexpr(WARP)


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    *,
    residual: torch.Tensor | None = None,
    kind: str | None = None,
    scale: torch.Tensor | None = None,
) -> Normed:
    """As layernorm_quantization.reference, on a GPU."""
    x, residual = rows_of(x), None if residual is None else rows_of(residual)
    y, scales = outputs(x, kind, scale is None)
    hidden = x if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    strides = x.stride(0), 0 if residual is None else residual.stride(0)
    channels = x.shape[1]
    launches[(len(x),)](
        x,
        residual,
        weight,
        bias,
        hidden,
        bytes_of(y),
        scales,
        scale,
        *strides,
        channels,
        eps,
        KIND=kind,
        CONVERTS=converts_fp8(x),
        **schedule(channels),
        FIRST=few(x) and channels <= MOST_HELD_TWICE,
        **starts_early(x),
        **OPTIONS,
    )
    return Normed(hidden, y, scales)


def schedule(channels: int) -> dict[str, int]:
    """A piece is two channels for every thread of the reference's block: 8 for a thread here, 16 if pieces are few."""
    threads = thread_count(channels)
    piece = 2 * power_of_two(threads)
    warps = max(piece // ((2 if channels <= FEW_CHANNELS else 1) * AT_ONCE * WARP), 1)
    return {"PIECE": piece, "PIECES": cdiv(channels, 2 * threads), "num_warps": warps}


@triton.jit
def halved(x):  # type: ignore[no-untyped-def]
    """[rows, lanes, 2] -> [rows, 2], as arithmetic.warp_sum along lanes: a sum of two has no order to choose."""
    rows: tl.constexpr = x.shape[0]
    lanes: tl.constexpr = x.shape[1]
    return tl.reshape(x, (rows, 2)) if lanes == 1 else halved(tl.sum(tl.reshape(x, (rows, 2, lanes // 2, 2)), 1))


@triton.jit
def block_sums(first, second):  # type: ignore[no-untyped-def]
    """Two sums over the threads of a block, [threads] each, as layernorm_quantization.block_sum behind its strides."""
    warps: tl.constexpr = first.shape[0] // LANES
    both = halved(tl.reshape(tl.join(first, second), (warps, LANES, 2)))
    return tl.split(tl.reshape(halved(tl.reshape(both, (1, warps, 2))), (2,)))


@triton.jit  # type: ignore[untyped-decorator]
def kernel(  # type: ignore[no-untyped-def]
    x,
    residual,
    weight,
    bias,
    hidden,
    out,
    scales,
    static,
    x_stride,
    residual_stride,
    channels,
    eps,
    KIND: tl.constexpr,
    CONVERTS: tl.constexpr,
    EARLY: tl.constexpr,
    FIRST: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
):
    DTYPE: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    x, out, hidden = x + row * x_stride, out + row * channels, hidden + row * channels
    if residual is not None:
        residual += row * residual_stride
    weights = weights_of(weight, channels, PIECE, PIECES, FIRST)
    biases = weights_of(bias, channels, PIECE, PIECES, FIRST and bias is not None)
    wait(EARLY)
    held = ()
    sums, squares = tl.zeros((PIECE // 2,), tl.float32), tl.zeros((PIECE // 2,), tl.float32)
    for i in tl.static_range(PIECES):
        columns = i * PIECE + tl.arange(0, PIECE)
        inside = columns < channels
        y = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        if residual is not None:
            y = rounded(y + tl.load(residual + columns, mask=inside, other=0.0).to(tl.float32), DTYPE)
            tl.store(hidden + columns, y.to(DTYPE), mask=inside)
        held += (y.to(DTYPE),)  # type: ignore[assignment]
        first, second = tl.split(tl.reshape(y, (PIECE // 2, 2)))
        sums += first + second
        squares += fma(first, first, second * second)
    total, total_square = block_sums(sums, squares)
    count = tl.full([], 1.0, tl.float32) * channels
    mean, mean_square = tl.div_rn(total, count), tl.div_rn(total_square, count)
    factor = reciprocal_root(fma(-mean, mean, mean_square) + eps)
    normed = ()
    for i in tl.static_range(PIECES):
        columns = i * PIECE + tl.arange(0, PIECE)
        weighed = weights[i] if FIRST else piece_of(weight, i * PIECE, channels, 0.0, PIECE)
        added = tl.zeros((PIECE,), tl.float32)
        if bias is not None:
            added = (biases[i] if FIRST else piece_of(bias, i * PIECE, channels, 0.0, PIECE)).to(tl.float32)
        y = rounded(fma((held[i].to(tl.float32) - mean) * factor, weighed.to(tl.float32), added), DTYPE)
        if scales is None:
            write_static(y, out + columns, static, columns < channels, DTYPE, KIND, CONVERTS)
        else:
            normed += (y.to(DTYPE),)
    if scales is not None:
        write_per_token(normed, out, scales + row, channels, DTYPE, KIND, CONVERTS, PIECES)


launches = Launches(kernel)
