"""What kernels that quantize rows share: rounding, ranges, sums that no order changes, e^x, and rows on their way out.

Functions on a device are given float32 unless they say otherwise; they equal those of ``arithmetic``, ``int8`` and
``fp8`` to the bit. Kernels that call them are launched with ``OPTIONS``: a contraction into fma would round otherwise.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import arithmetic, fp8
from .kernels import INTERPRETED, compute_capability

OPTIONS = {"enable_fp_fusion": False}
# The first generation that converts to e4m3.
CONVERTS_FP8 = 89
# Of a row, that a thread holds: two loads of 16 bytes.
PER_THREAD, WARP, MOST_WARPS = 16, 32, 32
MOST_IN_PIECE = 4096

INTERPRETS: tl.constexpr = tl.constexpr(INTERPRETED)
LEAST_RANGE: tl.constexpr = tl.constexpr(arithmetic.LEAST_RANGE)
NO_FRACTION: tl.constexpr = tl.constexpr(arithmetic.NO_FRACTION)
NO_FRACTION_BITS: tl.constexpr = tl.constexpr(0x4B400000)
FP8_MAX: tl.constexpr = tl.constexpr(fp8.MAX)
FP8_LEAST_SCALE: tl.constexpr = tl.constexpr(fp8.LEAST_SCALE)
FP8_LARGEST_FACTOR: tl.constexpr = tl.constexpr(1 / fp8.LEAST_SCALE)
# To add this to a number below 2^-6 leaves its multiple of 2^-9, the step of e4m3 there, in the last bits.
FP8_SUBNORMAL: tl.constexpr = tl.constexpr(2.0**14)
LOWEST_X: tl.constexpr = tl.constexpr(arithmetic.EXP_RANGE[0])
HIGHEST_X: tl.constexpr = tl.constexpr(arithmetic.EXP_RANGE[1])
INVERSE_LN2: tl.constexpr = tl.constexpr(arithmetic.INVERSE_LN2)
LN2_UPPER: tl.constexpr = tl.constexpr(arithmetic.LN2_UPPER)
LN2_LOWER: tl.constexpr = tl.constexpr(arithmetic.LN2_LOWER)
P4, P3, P2, P1, P0 = (tl.constexpr(coefficient) for coefficient in arithmetic.EXP_POLYNOMIAL)


def converts_fp8(x: torch.Tensor) -> bool:
    """Whether a tensor's device has an instruction that rounds to e4m3."""
    return not INTERPRETED and compute_capability(x.device.index or 0) >= CONVERTS_FP8


def in_registers(channels: int) -> dict[str, int]:
    """The schedule of a kernel whose program holds one row: a power of two of places, and warps for them."""
    block = triton.next_power_of_2(channels)
    return {"BLOCK": block, "num_warps": min(max(block // (PER_THREAD * WARP), 1), MOST_WARPS)}


def in_pieces(x: torch.Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid and schedule of a kernel whose program computes a piece of one row."""
    schedule = in_registers(min(x.shape[1], MOST_IN_PIECE))
    return (len(x), triton.cdiv(x.shape[1], schedule["BLOCK"])), schedule


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
def rounded(x, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """To the nearest number of a dtype, half to even, as float32; Triton's interpreter would cut bfloat16 off."""
    if INTERPRETS and DTYPE.is_bf16():
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        y = bits.to(tl.float32, bitcast=True)
    else:
        y = x.to(DTYPE).to(tl.float32)
    return y


@triton.jit
def normal_quotient(x, d):  # type: ignore[no-untyped-def]
    """x / d, rounded once, where d and both reciprocal and quotient are normal numbers: no case is set apart.

    The device's estimate of 1 / d and the quotient are each mended by what they leave of 1 and of x, exact in an fma.
    """
    if INTERPRETS:
        q = tl.div_rn(x, d)
    else:
        r = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [d], tl.float32, True, 1)
        r = tl.fma(tl.fma(-d, r, 1.0), r, r)
        q = x * r
        q = tl.fma(tl.fma(-d, q, x), r, q)
        q = tl.fma(tl.fma(-d, q, x), r, q)
    return q


@triton.jit  # type: ignore[untyped-decorator]
def smoothed(y, smoother, columns, inside, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """As ``quantized_rows.smoothed``, y of DTYPE's values."""
    divisor = rounded(tl.load(smoother + columns, mask=inside, other=1.0).to(tl.float32), DTYPE)
    # Quotients of float16 numbers are normal numbers of float32 all.
    y = normal_quotient(y, divisor) if DTYPE.is_fp16() else tl.div_rn(y, divisor)
    return rounded(y, DTYPE)


@triton.jit
def fma(a, b, c):  # type: ignore[no-untyped-def]
    """a b + c, rounded once; Triton's interpreter would round twice."""
    y = a.to(tl.float64) * b.to(tl.float64) + c.to(tl.float64) if INTERPRETS else tl.fma(a, b, c)
    return y.to(tl.float32)


@triton.jit
def reciprocal_root(x):  # type: ignore[no-untyped-def]
    return tl.div_rn(1.0, tl.sqrt_rn(x))


@triton.jit
def sum_in_any_order(x, largest, channels):  # type: ignore[no-untyped-def]
    """[BLOCK] -> float64, as ``arithmetic.sum_in_any_order`` of one row; places beyond it hold 0."""
    bound = largest.to(tl.float64) * channels
    return tl.sum((x.to(tl.float64) + bound) - bound, 0)


@triton.jit
def power_of_two(exponent):  # type: ignore[no-untyped-def]
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exp_parts(x):  # type: ignore[no-untyped-def]
    """e^x as a number near 1 and the exponent of a power of two."""
    shifted = x * INVERSE_LN2 + NO_FRACTION
    n = shifted - NO_FRACTION
    r = (x - n * LN2_UPPER) - n * LN2_LOWER
    p = (((P4 * r + P3) * r + P2) * r + P1) * r + P0
    return (r * r * p + r) + 1.0, shifted.to(tl.int32, bitcast=True) - NO_FRACTION_BITS


@triton.jit
def exp(x):  # type: ignore[no-untyped-def]
    """As ``arithmetic.exp``."""
    y, exponent = exp_parts(tl.minimum(tl.maximum(x, LOWEST_X), HIGHEST_X))
    half = exponent >> 1
    return y * power_of_two(half) * power_of_two(exponent - half)


@triton.jit
def normal_exp(x):  # type: ignore[no-untyped-def]
    """The same of |x| up to 86, whose power of two is added to the bits."""
    y, exponent = exp_parts(x)
    return (y.to(tl.int32, bitcast=True) + (exponent << 23)).to(tl.float32, bitcast=True)


@triton.jit
def to_int8(x):  # type: ignore[no-untyped-def]
    """Half to even, saturated: the integer is in the last bits of the sum."""
    x = tl.minimum(tl.maximum(x, -128.0), 127.0) + NO_FRACTION
    return x.to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit  # type: ignore[untyped-decorator]
def to_fp8(x, CONVERTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """e4m3 as bytes, half to even, saturated; with the device's instruction or on the bits of float32."""
    if CONVERTS:
        byte = x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)  # saturates
    else:
        x = tl.minimum(tl.maximum(x, -FP8_MAX), FP8_MAX)
        bits = x.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
        subnormal = (size.to(tl.float32, bitcast=True) + FP8_SUBNORMAL).to(tl.int32, bitcast=True)
        number = tl.where(size < (121 << 23), subnormal, normal) & 0x7F
        byte = (number | ((bits >> 24) & 0x80)).to(tl.uint8)
    return byte


@triton.jit  # type: ignore[untyped-decorator]
def fp8_scaled(y, s, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """y / s near enough that e4m3 of it is e4m3 of the quotient rounded once, both numbers of DTYPE.

    Of numbers of 11 bits and fewer the quotient is in the middle of two of 4 bits, or 2^-17 of itself away. It is
    multiplied by 1 / s and mended once, which leaves an error below 2^-23, and none where float32 has the quotient.
    """
    if (DTYPE.is_fp16() or DTYPE.is_bf16()) and not INTERPRETS:
        if (s > 2.0**-60) & (s < 2.0**60):
            r = tl.div_rn(1.0, s)
            q = tl.minimum(tl.maximum(y * r, -2 * FP8_MAX), 2 * FP8_MAX)
            q = tl.fma(tl.fma(-q, s, y), r, q)
        else:
            q = tl.div_rn(y, s)
    else:
        q = tl.div_rn(y, s)
    return q


@triton.jit  # type: ignore[untyped-decorator]
def write_row(  # type: ignore[no-untyped-def]
    y, out, scales, static, row, channels, columns, DTYPE: tl.constexpr, KIND: tl.constexpr, CONVERTS: tl.constexpr
):
    """Quantize one row, or a part of one with a static scale, as ``quantized_rows.quantized``; and store it.

    Args:
        y: [BLOCK] values of DTYPE, 0 beyond the row.
        out: [tokens, channels]; scales: float32 [tokens] or None; static: float32 [1] or None.
        columns: [BLOCK], where in the row y lies.
    """
    inside, places = columns < channels, out + row * channels + columns
    if KIND is None:
        tl.store(places, y.to(DTYPE), mask=inside)
    elif KIND == "int8":
        if static is None:
            largest = tl.maximum(tl.max(tl.abs(y), 0), rounded(tl.full([], LEAST_RANGE, tl.float32), DTYPE))
            factor = tl.div_rn(127.0, largest)
            tl.store(scales + row, tl.div_rn(largest, 127.0))
        else:
            factor = tl.load(static)
        tl.store(places, to_int8(y * factor), mask=inside)
    else:
        if static is None:
            largest = tl.maximum(tl.max(tl.abs(y), 0), rounded(tl.full([], LEAST_RANGE, tl.float32), DTYPE))
            factor = tl.minimum(tl.div_rn(FP8_MAX, largest), FP8_LARGEST_FACTOR)
            tl.store(scales + row, tl.maximum(tl.div_rn(largest, FP8_MAX), FP8_LEAST_SCALE))
            scaled = rounded(y * factor, tl.bfloat16)
        else:
            scaled = fp8_scaled(y, rounded(tl.load(static), DTYPE), DTYPE)
        tl.store(places, to_fp8(scaled, CONVERTS), mask=inside)
