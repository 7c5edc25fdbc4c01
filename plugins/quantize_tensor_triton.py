"""quantize_tensor.reference, a piece of a row a program; values do not see each other.

Integers and FP8 values are equal.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arithmetic_triton import OPTIONS
from .kernels import starts_early
from .launches import Launches
from .quantized_rows import INT8
from .quantized_rows_triton import (
    bytes_of,
    converts_fp8,
    in_pieces,
    outputs,
    piece_of,
    rows_of,
    smoothed,
    wait,
    write_static,
)


def run(
    x: torch.Tensor, scale: torch.Tensor, smoother: torch.Tensor | None = None, *, kind: str = INT8
) -> torch.Tensor:
    """As quantize_tensor.reference, on a GPU."""
    x = rows_of(x)
    q, _ = outputs(x, kind, False)
    grid, schedule = in_pieces(x)
    meta = {"KIND": kind, "CONVERTS": converts_fp8(x), **schedule, **starts_early(x), **OPTIONS}
    launches[grid](x, smoother, bytes_of(q), scale, x.stride(0), x.shape[1], **meta)
    return q


@triton.jit  # type: ignore[untyped-decorator]
def kernel(  # type: ignore[no-untyped-def]
    x,
    smoother,
    out,
    static,
    x_stride,
    channels,
    KIND: tl.constexpr,
    CONVERTS: tl.constexpr,
    EARLY: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
):
    DTYPE: tl.constexpr = x.dtype.element_ty
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * PIECE
    wait(EARLY)
    y = piece_of(x + row * x_stride, first, channels, 0.0, PIECE).to(tl.float32)
    if smoother is not None:
        y = smoothed(y, piece_of(smoother, first, channels, 1.0, PIECE), DTYPE)
    columns = first + tl.arange(0, PIECE)
    write_static(y, out + row * channels + columns, static, columns < channels, DTYPE, KIND, CONVERTS)


launches = Launches(kernel)
