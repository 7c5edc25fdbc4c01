"""Rows on their way through a kernel that quantizes them: how it is launched, and ``quantized_rows`` on a device.

Integers, e4m3 values and scales equal those of the references to the bit.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from . import arithmetic, fp8
from .arithmetic_triton import FP8_MAX, fp8_scaled, normal_quotient, rounded, to_fp8, to_int8
from .kernels import cdiv, generation, power_of_two

# The first generation that converts to e4m3.
CONVERTS_FP8 = 89
# Channels that a thread loads at once, 16 bytes of them.
AT_ONCE, WARP = 8, 32
# Of a row in registers a thread holds four times as many, and, lest a row take a whole multiprocessor, eight times with
# that many warps. Where rows are few they have up to MOST_WARPS.
HELD, MOST_HELD, FEW_WARPS, MOST_WARPS = 32, 64, 8, 16
MOST_IN_PIECE = 4096
# So few rows have a multiprocessor each.
FEW_ROWS = 64

LEAST_RANGE: tl.constexpr = tl.constexpr(arithmetic.LEAST_RANGE)
FP8_LEAST_SCALE: tl.constexpr = tl.constexpr(fp8.LEAST_SCALE)
FP8_LARGEST_FACTOR: tl.constexpr = tl.constexpr(1 / fp8.LEAST_SCALE)
# A number divided by this is 0 in float16, as if divided by infinity.
BEYOND_FP16: tl.constexpr = tl.constexpr(2.0**60)


def converts_fp8(x: torch.Tensor) -> bool:
    """Whether a tensor's device has an instruction that rounds to e4m3."""
    return generation(x) >= CONVERTS_FP8


def few(x: torch.Tensor) -> bool:
    """Whether rows are so few that a kernel is a matter of latency: warps are many, weights are loaded before x is."""
    return len(x) <= FEW_ROWS


def in_registers(x: torch.Tensor, of_few: int = AT_ONCE) -> dict[str, int]:
    """The schedule of a kernel whose program holds one row: so many pieces of a power of two of places, and warps.

    Args:
        of_few: channels that a thread holds where rows are few; every reduction is a reason for more.
    """
    return row_schedule(x.shape[1], few(x), of_few)


@cache
def row_schedule(channels: int, rows_are_few: bool, of_few: int) -> dict[str, int]:
    """``in_registers``."""
    if rows_are_few:
        warps = min(warps_for(channels, of_few), MOST_WARPS)
    else:
        warps = max(min(warps_for(channels, HELD), FEW_WARPS), warps_for(channels, MOST_HELD))
    piece = AT_ONCE * WARP * warps
    return {"PIECE": piece, "PIECES": cdiv(channels, piece), "num_warps": warps}


def warps_for(channels: int, held: int) -> int:
    """The power of two of them whose threads hold no more channels than that."""
    return power_of_two(cdiv(channels, held * WARP))


def in_pieces(x: torch.Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid and schedule of a kernel whose program computes a piece of one row."""
    piece = min(power_of_two(max(x.shape[1], AT_ONCE * WARP)), MOST_IN_PIECE)
    schedule = {"PIECE": piece, "PIECES": 1, "num_warps": max(piece // (2 * AT_ONCE * WARP), 1)}
    return (len(x), cdiv(x.shape[1], piece)), schedule


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """A matrix whose rows lie in one piece each, at any stride: x itself if it does."""
    return x if x.stride(-1) == 1 else x.contiguous()


def outputs(x: torch.Tensor, kind: str | None, per_token: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Memory for rows like x's as they leave, and for float32 [tokens, 1] scales where they have such."""
    dtype = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, None: x.dtype}[kind]
    scales = x.new_empty((len(x), 1), dtype=torch.float32) if kind is not None and per_token else None
    return torch.empty(x.shape, dtype=dtype, device=x.device), scales


def bytes_of(q: torch.Tensor) -> torch.Tensor:
    """What a kernel writes: e4m3 as bytes, for generations whose Triton does not know the dtype."""
    return q.view(torch.uint8) if q.dtype == torch.float8_e4m3fn else q


@triton.jit  # type: ignore[untyped-decorator]
def piece_of(row, first, channels, beyond, PIECE: tl.constexpr):  # type: ignore[no-untyped-def]
    """[PIECE] channels of a row, from ``first`` on, as they lie there; beyond the row, a number."""
    columns = first + tl.arange(0, PIECE)
    return tl.load(row + columns, mask=columns < channels, other=beyond)


@triton.jit  # type: ignore[untyped-decorator]
def weights_of(weight, channels, PIECE: tl.constexpr, PIECES: tl.constexpr, WANTED: tl.constexpr):  # type: ignore[no-untyped-def]
    """All pieces of a weight, before ``wait``, if it is wanted that early."""
    pieces = ()
    if WANTED:
        for i in tl.static_range(PIECES):
            pieces += (piece_of(weight, i * PIECE, channels, 0.0, PIECE),)  # type: ignore[assignment]
    return pieces


@triton.jit  # type: ignore[untyped-decorator]
def smoothed(y, smoother, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """As ``quantized_rows.smoothed``: y of DTYPE's values, by a smoother of its size, none of it 0."""
    divisor = rounded(smoother.to(tl.float32), DTYPE)
    if DTYPE.is_fp16():
        # Quotients of float16 numbers are normal numbers of float32 all. That of two of 11 bits each is 2^-23 of
        # itself away from the middle of two of 11, or just there, and then a number of float32.
        sign = divisor.to(tl.int32, bitcast=True) & -0x80000000
        y = (y.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
        y = normal_quotient(y, tl.minimum(tl.abs(divisor), BEYOND_FP16), DTYPE)
    else:
        y = tl.div_rn(y, divisor)
    return rounded(y, DTYPE)


@triton.jit  # type: ignore[untyped-decorator]
def wait(EARLY: tl.constexpr):  # type: ignore[no-untyped-def]
    """For the kernel before; the one behind may be launched meanwhile, and waits here for the end of this one."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit  # type: ignore[untyped-decorator]
def write_static(y, places, static, inside, DTYPE: tl.constexpr, KIND: tl.constexpr, CONVERTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A piece of a row as ``quantized_rows.static`` has it, or as it is.

    Args:
        y: [PIECE] values of DTYPE.
        places: [PIECE], where they go.
        static: float32 [1], or None where KIND is None.
    """
    if KIND is None:
        tl.store(places, y.to(DTYPE), mask=inside)
    elif KIND == "int8":
        tl.store(places, to_int8(y * tl.load(static), True), mask=inside)
    else:
        scaled = fp8_scaled(y, rounded(tl.load(static), DTYPE), DTYPE)
        tl.store(places, to_fp8(scaled, CONVERTS), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def write_per_token(  # type: ignore[no-untyped-def]
    held, out, scale, channels, DTYPE: tl.constexpr, KIND: tl.constexpr, CONVERTS: tl.constexpr, PIECES: tl.constexpr
):
    """A row as ``quantized_rows.per_token`` has it.

    Args:
        held: its pieces, [PIECE] each, of DTYPE; 0 beyond the row.
        out: where the row goes; scale: where its float32 scale goes.
    """
    largest = tl.abs(held[0].to(tl.float32))
    for i in tl.static_range(1, PIECES):
        largest = tl.maximum(largest, tl.abs(held[i].to(tl.float32)))
    largest = tl.maximum(tl.max(largest, 0), rounded(tl.full([], LEAST_RANGE, tl.float32), DTYPE))
    limit: tl.constexpr = 127.0 if KIND == "int8" else FP8_MAX
    factor, step = tl.div_rn(limit, largest), tl.div_rn(largest, limit)
    if KIND == "fp8":
        factor, step = tl.minimum(factor, FP8_LARGEST_FACTOR), tl.maximum(step, FP8_LEAST_SCALE)
    tl.store(scale, step)
    # A row with an infinite value is one of zeros: infinity times 0 is no number, whose integer is 0.
    kept = tl.where(largest < float("inf"), -1, 0).to(tl.int8)
    for i in tl.static_range(PIECES):
        columns = i * held[0].shape[0] + tl.arange(0, held[0].shape[0])
        scaled = held[i].to(tl.float32) * factor
        q = to_int8(scaled, False) & kept if KIND == "int8" else to_fp8(rounded(scaled, tl.bfloat16), CONVERTS)
        tl.store(out + columns, q, mask=columns < channels)
