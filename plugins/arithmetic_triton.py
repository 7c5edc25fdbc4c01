"""What kernels that quantize compute with: rounding, quotients, sums that no order changes, e^x, int8 and e4m3.

Functions are given float32 unless they say otherwise; they equal those of ``arithmetic``, ``int8`` and ``fp8`` to the
bit. Kernels that call them are launched with ``OPTIONS``: a contraction into fma would round otherwise. Every
launch says whether it contracts, for Triton's default is about to change.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import arithmetic, fp8
from .kernels import INTERPRETED

OPTIONS = {"enable_fp_fusion": False}
INTERPRETS: tl.constexpr = tl.constexpr(INTERPRETED)
NO_FRACTION: tl.constexpr = tl.constexpr(arithmetic.NO_FRACTION)
NO_FRACTION_BITS: tl.constexpr = tl.constexpr(0x4B400000)
FP8_MAX: tl.constexpr = tl.constexpr(fp8.MAX)
# To add this to a number below 2^-6 leaves its multiple of 2^-9, the step of e4m3 there, in the last bits.
FP8_SUBNORMAL: tl.constexpr = tl.constexpr(2.0**14)
LOWEST_X: tl.constexpr = tl.constexpr(arithmetic.EXP_RANGE[0])
HIGHEST_X: tl.constexpr = tl.constexpr(arithmetic.EXP_RANGE[1])
INVERSE_LN2: tl.constexpr = tl.constexpr(arithmetic.INVERSE_LN2)
LN2_UPPER: tl.constexpr = tl.constexpr(arithmetic.LN2_UPPER)
LN2_LOWER: tl.constexpr = tl.constexpr(arithmetic.LN2_LOWER)
P4, P3, P2, P1, P0 = (tl.constexpr(coefficient) for coefficient in arithmetic.EXP_POLYNOMIAL)


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
def negated(x):  # type: ignore[no-untyped-def]
    """-x as the sign of an operand, for nothing; Triton's own is a difference, 0 - x."""
    return (x.to(tl.int32, bitcast=True) ^ -0x80000000).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def normal_quotient(x, d, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """x / d, rounded once, where d > 0 and both reciprocal and quotient are normal numbers: no case is set apart.

    The device's estimate of 1 / d and the quotient are each mended by what they leave of 1 and of x, exact in an fma.
    Nothing left is +0, of which the product with -r leaves a quotient of -0 its sign. For quotients that are rounded
    to DTYPE, of float16 or bfloat16, next: the estimate, and a quotient that is mended once, are near enough.
    """
    if INTERPRETS:
        q = tl.div_rn(x, d)
    else:
        r = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [d], tl.float32, True, 1)
        if not (DTYPE.is_fp16() or DTYPE.is_bf16()):
            r = tl.fma(tl.fma(negated(d), r, 1.0), r, r)
        q = x * r
        q = tl.fma(tl.fma(d, q, negated(x)), negated(r), q)
        if not (DTYPE.is_fp16() or DTYPE.is_bf16()):
            q = tl.fma(tl.fma(d, q, negated(x)), negated(r), q)
    return q


@triton.jit
def fma(a, b, c):  # type: ignore[no-untyped-def]
    """a b + c, rounded once; Triton's interpreter would round twice."""
    y = a.to(tl.float64) * b.to(tl.float64) + c.to(tl.float64) if INTERPRETS else tl.fma(a, b, c)
    return y.to(tl.float32)


@triton.jit
def reciprocal_root(x):  # type: ignore[no-untyped-def]
    return tl.div_rn(1.0, tl.sqrt_rn(x))


@triton.jit
def sums_of_eight(x):  # type: ignore[no-untyped-def]
    """[n] -> [n / 8], as ``arithmetic.sums_of_eight``; within one thread, which has loaded eight neighbours."""
    for _ in tl.static_range(3):
        first, second = tl.split(tl.reshape(x, (x.shape[0] // 2, 2)))
        x = first + second
    return x


@triton.jit  # type: ignore[untyped-decorator]
def sum_in_any_order(sums, channels, PIECES: tl.constexpr):  # type: ignore[no-untyped-def]
    """float64, as ``arithmetic.sum_in_any_order`` of one row, of the sums of eight of its pieces, 0 beyond it."""
    largest = tl.abs(sums[0])
    for i in tl.static_range(1, PIECES):
        largest = tl.maximum(largest, tl.abs(sums[i]))
    bound = tl.max(largest, 0).to(tl.float64) * ((channels + 7) // 8)
    total = (sums[0].to(tl.float64) + bound) - bound
    for i in tl.static_range(1, PIECES):
        total += (sums[i].to(tl.float64) + bound) - bound
    return tl.sum(total, 0)


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


@triton.jit  # type: ignore[untyped-decorator]
def to_int8(x, SATURATES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Half to even, saturated unless x is known to be in range: the integer is in the last bits of the sum."""
    if SATURATES:
        x = tl.minimum(tl.maximum(x, -128.0), 127.0)
    return (x + NO_FRACTION).to(tl.int32, bitcast=True).to(tl.int8)


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
            q = tl.fma(tl.fma(q, s, negated(y)), negated(r), q)
        else:
            q = tl.div_rn(y, s)
    else:
        q = tl.div_rn(y, s)
    return q
