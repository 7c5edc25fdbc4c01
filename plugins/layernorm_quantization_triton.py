"""layernorm_quantization.reference, one row a program: sums in the order of a thread block, then the row in registers.

Sums read pairs of channels and what follows reads the row, so that the second finds it in the cache. Integers, scales
and floats are equal to the bit: the order of every sum is written out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arithmetic_triton import (
    OPTIONS,
    bytes_of,
    converts_fp8,
    fma,
    in_registers,
    outputs,
    reciprocal_root,
    rounded,
    rows_of,
    write_row,
)
from .layernorm_quantization import WARP, thread_count
from .rmsnorm_quantization import Normed

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
    threads = thread_count(channels)
    kernel[(len(x),)](
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
        THREADS=threads,
        PLACES=triton.next_power_of_2(threads),
        STRIDES=triton.cdiv(channels // 2, threads),
        KIND=kind,
        CONVERTS=converts_fp8(x),
        **in_registers(channels),
        **OPTIONS,
    )
    return Normed(hidden, y, scales)


@triton.jit  # type: ignore[untyped-decorator]
def read(x, residual, places, inside, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    y = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        y = rounded(y + tl.load(residual + places, mask=inside, other=0.0).to(tl.float32), DTYPE)
    return y


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
    THREADS: tl.constexpr,
    PLACES: tl.constexpr,
    STRIDES: tl.constexpr,
    KIND: tl.constexpr,
    CONVERTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    DTYPE: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    if residual is not None:
        residual += row * residual_stride

    pairs = tl.arange(0, 2 * PLACES)
    sums, squares = tl.zeros((PLACES,), tl.float32), tl.zeros((PLACES,), tl.float32)
    for i in tl.static_range(STRIDES):
        places = i * 2 * THREADS + pairs
        inside = (pairs < 2 * THREADS) & (places < channels)
        y = tl.reshape(read(x, residual, places, inside, DTYPE), (PLACES, 2))
        first, second = tl.split(y)
        sums += first + second
        squares += fma(first, first, second * second)
    total, total_square = block_sums(sums, squares)
    count = tl.full([], 1.0, tl.float32) * channels
    mean, mean_square = tl.div_rn(total, count), tl.div_rn(total_square, count)
    factor = reciprocal_root(fma(-mean, mean, mean_square) + eps)

    columns = tl.arange(0, BLOCK)
    inside = columns < channels
    y = read(x, residual, columns, inside, DTYPE)
    if residual is not None:
        tl.store(hidden + row * channels + columns, y.to(DTYPE), mask=inside)
    added = tl.zeros((BLOCK,), tl.float32)
    if bias is not None:
        added = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    y = fma((y - mean) * factor, tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32), added)
    write_row(rounded(y, DTYPE), out, scales, static, row, channels, columns, DTYPE, KIND, CONVERTS)
