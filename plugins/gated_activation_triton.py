"""gated_activation.reference, one row a program that quantizes per token, else a piece of one; one read, one write.

Integers, FP8 values, scales and floats are equal to the bit: e^x is of IEEE operations alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arithmetic_triton import OPTIONS, negated, normal_exp, normal_quotient, rounded
from .gated_activation import GELU_CUBIC, GELU_LINEAR, LARGEST_EXPONENT
from .kernels import starts_early
from .launches import Launches
from .quantized_rows import Rows
from .quantized_rows_triton import (
    bytes_of,
    converts_fp8,
    in_pieces,
    in_registers,
    outputs,
    piece_of,
    rows_of,
    smoothed,
    wait,
    write_per_token,
    write_static,
)

LINEAR: tl.constexpr = tl.constexpr(GELU_LINEAR)
CUBIC: tl.constexpr = tl.constexpr(GELU_CUBIC)
LARGEST: tl.constexpr = tl.constexpr(LARGEST_EXPONENT)


def run(
    gate: torch.Tensor,
    up: torch.Tensor | None = None,
    smoother: torch.Tensor | None = None,
    *,
    activation: str = "silu",
    kind: str | None = None,
    scale: torch.Tensor | None = None,
) -> Rows:
    """As gated_activation.reference, on a GPU."""
    gate, up = rows_of(gate), None if up is None else rows_of(up)
    y, scales = outputs(gate, kind, scale is None)
    grid, schedule = in_pieces(gate) if scales is None else ((len(gate), 1), in_registers(gate))
    pointers = gate, up, smoother, bytes_of(y), scales, scale
    numbers = gate.stride(0), 0 if up is None else up.stride(0), gate.shape[1]
    meta = {
        "ACTIVATION": activation,
        "KIND": kind,
        "CONVERTS": converts_fp8(gate),
        **schedule,
    }
    launches[grid](*pointers, *numbers, **meta, **starts_early(gate), **OPTIONS)
    return Rows(y, scales)


@triton.jit  # type: ignore[untyped-decorator]
def weighed(x, t, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """x / (1 + e^t)."""
    return normal_quotient(x, normal_exp(tl.minimum(tl.maximum(t, -LARGEST), LARGEST)) + 1.0, DTYPE)


@triton.jit  # type: ignore[untyped-decorator]
def activated(x, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    if ACTIVATION == "silu":
        y = weighed(x, negated(x), DTYPE)
    elif ACTIVATION == "gelu":
        y = weighed(x, x * (x * x * CUBIC + LINEAR), DTYPE)
    else:
        y = tl.where(x > 0.0, x, 0.0)
        if ACTIVATION == "squared-relu":
            y = y * y
    return y


@triton.jit  # type: ignore[untyped-decorator]
def kernel(  # type: ignore[no-untyped-def]
    gate,
    up,
    smoother,
    out,
    scales,
    static,
    gate_stride,
    up_stride,
    channels,
    ACTIVATION: tl.constexpr,
    KIND: tl.constexpr,
    CONVERTS: tl.constexpr,
    EARLY: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
):
    DTYPE: tl.constexpr = gate.dtype.element_ty
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * PIECE
    out += row * channels
    wait(EARLY)
    held = ()
    for i in tl.static_range(PIECES):
        start = first + i * PIECE
        y = piece_of(gate + row * gate_stride, start, channels, 0.0, PIECE).to(tl.float32)
        y = rounded(activated(y, ACTIVATION, DTYPE), DTYPE)
        if up is not None:
            y = rounded(y * piece_of(up + row * up_stride, start, channels, 0.0, PIECE).to(tl.float32), DTYPE)
        if smoother is not None:
            y = smoothed(y, piece_of(smoother, start, channels, 1.0, PIECE), DTYPE)
        if scales is None:
            columns = start + tl.arange(0, PIECE)
            write_static(y, out + columns, static, columns < channels, DTYPE, KIND, CONVERTS)
        else:
            held += (y.to(DTYPE),)  # type: ignore[assignment]
    if scales is not None:
        write_per_token(held, out, scales + row, channels, DTYPE, KIND, CONVERTS, PIECES)


launches = Launches(kernel)
