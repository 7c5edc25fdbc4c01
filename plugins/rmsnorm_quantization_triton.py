"""rmsnorm_quantization.reference, one row a program, held in registers from its one read to its one write.

Integers, scales and floats are equal to the bit: squares are summed so that no order changes the sum, and every other
operation is one of IEEE.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arithmetic_triton import (
    OPTIONS,
    bytes_of,
    converts_fp8,
    in_registers,
    outputs,
    reciprocal_root,
    rounded,
    rows_of,
    sum_in_any_order,
    write_row,
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
    kernel[(len(x),)](
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
        **in_registers(x.shape[1]),
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
    BLOCK: tl.constexpr,
):
    DTYPE: tl.constexpr = x.dtype.element_ty
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = columns < channels
    y = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        y += tl.load(residual + row * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
        y = rounded(y, DTYPE)
        tl.store(hidden + row * channels + columns, y.to(DTYPE), mask=inside)
    square = y * y
    total = sum_in_any_order(square, tl.max(square, 0), channels)
    mean = (total * (tl.full([], 1.0, tl.float64) / channels)).to(tl.float32)
    factor = reciprocal_root(mean + eps)
    y = rounded(y * factor * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32), DTYPE)
    write_row(y, out, scales, static, row, channels, columns, DTYPE, KIND, CONVERTS)
