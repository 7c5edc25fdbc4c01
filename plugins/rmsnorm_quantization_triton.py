"""rmsnorm_quantization.reference, one row a program, held in registers from its one read to its one write.

Integers, scales and floats are equal to the bit: squares are summed so that no order changes the sum, and every other
operation is one of IEEE.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arithmetic_triton import OPTIONS, reciprocal_root, rounded, sum_in_any_order, sums_of_eight
from .kernels import starts_early
from .launches import Launches
from .quantized_rows_triton import (
    AT_ONCE,
    bytes_of,
    converts_fp8,
    few,
    in_registers,
    outputs,
    piece_of,
    rows_of,
    wait,
    weights_of,
    write_per_token,
    write_static,
)
from .rmsnorm_quantization import Normed


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    residual: torch.Tensor | None = None,
    kind: str | None = None,
    scale: torch.Tensor | None = None,
) -> Normed:
    """As rmsnorm_quantization.reference, on a GPU."""
    x, residual = rows_of(x), None if residual is None else rows_of(residual)
    y, scales = outputs(x, kind, scale is None)
    hidden = x if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    strides = x.stride(0), 0 if residual is None else residual.stride(0)
    launches[(len(x),)](
        x,
        residual,
        weight,
        hidden,
        bytes_of(y),
        scales,
        scale,
        *strides,
        x.shape[1],
        eps,
        KIND=kind,
        CONVERTS=converts_fp8(x),
        **in_registers(x, 2 * AT_ONCE),
        FIRST=few(x),
        **starts_early(x),
        **OPTIONS,
    )
    return Normed(hidden, y, scales)


@triton.jit  # type: ignore[untyped-decorator]
def kernel(  # type: ignore[no-untyped-def]
    x,
    residual,
    weight,
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
    wait(EARLY)
    held, squares = (), ()
    for i in tl.static_range(PIECES):
        columns = i * PIECE + tl.arange(0, PIECE)
        inside = columns < channels
        y = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        if residual is not None:
            y = rounded(y + tl.load(residual + columns, mask=inside, other=0.0).to(tl.float32), DTYPE)
            tl.store(hidden + columns, y.to(DTYPE), mask=inside)
        held += (y.to(DTYPE),)  # type: ignore[assignment]
        squares += (sums_of_eight(y * y),)  # type: ignore[assignment]
    total = sum_in_any_order(squares, channels, PIECES)
    mean = (total * (tl.full([], 1.0, tl.float64) / channels)).to(tl.float32)
    factor = reciprocal_root(mean + eps)
    normed = ()
    for i in tl.static_range(PIECES):
        columns = i * PIECE + tl.arange(0, PIECE)
        weighed = weights[i] if FIRST else piece_of(weight, i * PIECE, channels, 0.0, PIECE)
        y = rounded(held[i].to(tl.float32) * factor * weighed.to(tl.float32), DTYPE)
        if scales is None:
            write_static(y, out + columns, static, columns < channels, DTYPE, KIND, CONVERTS)
        else:
            normed += (y.to(DTYPE),)
    if scales is not None:
        write_per_token(normed, out, scales + row, channels, DTYPE, KIND, CONVERTS, PIECES)


launches = Launches(kernel)
