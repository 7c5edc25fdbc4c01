"""quantize_per_token.reference, one row a program, held in registers from its one read to its one write.

Integers, FP8 values, scales and sums are equal: the largest value and the sum do not depend on an order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arithmetic_triton import OPTIONS, sum_in_any_order, sums_of_eight
from .kernels import starts_early
from .launches import Launches
from .quantized_rows import INT8
from .quantized_rows_triton import (
    bytes_of,
    converts_fp8,
    in_registers,
    outputs,
    piece_of,
    rows_of,
    smoothed,
    wait,
    write_per_token,
)


def run(
    x: torch.Tensor, smoother: torch.Tensor | None = None, *, kind: str = INT8
) -> tuple[torch.Tensor, torch.Tensor]:
    """As quantize_per_token.reference, on a GPU."""
    return launch(x, smoother, None, kind)


def run_with_sums(
    x: torch.Tensor, smoother: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As quantize_per_token.reference_with_sums, on a GPU."""
    total = x.new_empty((len(x), 1), dtype=torch.float16)
    return (*launch(x, smoother, total, INT8), total)


def launch(
    x: torch.Tensor, smoother: torch.Tensor | None, total: torch.Tensor | None, kind: str
) -> tuple[torch.Tensor, torch.Tensor]:
    x = rows_of(x)
    q, scales = outputs(x, kind, True)
    assert scales is not None
    pointers = x, smoother, bytes_of(q), scales, total
    meta = {"KIND": kind, "CONVERTS": converts_fp8(x), **in_registers(x)}
    launches[(len(x),)](*pointers, x.stride(0), x.shape[1], **meta, **starts_early(x), **OPTIONS)
    return q, scales


@triton.jit  # type: ignore[untyped-decorator]
def kernel(  # type: ignore[no-untyped-def]
    x,
    smoother,
    out,
    scales,
    totals,
    x_stride,
    channels,
    KIND: tl.constexpr,
    CONVERTS: tl.constexpr,
    EARLY: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
):
    DTYPE: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    wait(EARLY)
    held, sums = (), ()
    for i in tl.static_range(PIECES):
        y = piece_of(x + row * x_stride, i * PIECE, channels, 0.0, PIECE).to(tl.float32)
        if smoother is not None:
            y = smoothed(y, piece_of(smoother, i * PIECE, channels, 1.0, PIECE), DTYPE)
        held += (y.to(DTYPE),)  # type: ignore[assignment]
        if totals is not None:
            sums += (sums_of_eight(y),)  # type: ignore[assignment]
    if totals is not None:
        tl.store(totals + row, sum_in_any_order(sums, channels, PIECES).to(tl.float32).to(tl.float16))
    write_per_token(held, out + row * channels, scales + row, channels, DTYPE, KIND, CONVERTS, PIECES)


launches = Launches(kernel)
