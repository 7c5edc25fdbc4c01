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
# Channels that a thread loads at once, 16 bytes of them.
AT_ONCE, WARP = 8, 32
# Of a row in registers a thread holds four times as many, and, lest a row take a whole multiprocessor, eight times with
# that many warps. Of few rows: twice as many.
HELD, MOST_HELD, FEW_WARPS = 32, 64, 8
HELD_OF_FEW, MOST_WARPS = 16, 16
MOST_IN_PIECE = 4096
# So few rows have a multiprocessor each.
FEW_ROWS = 64
# The first generation whose kernels may start before the one that makes their input has ended.
STARTS_EARLY = 90

INTERPRETS: tl.constexpr = tl.constexpr(INTERPRETED)
LEAST_RANGE: tl.constexpr = tl.constexpr(arithmetic.LEAST_RANGE)
NO_FRACTION: tl.constexpr = tl.constexpr(arithmetic.NO_FRACTION)
NO_FRACTION_BITS: tl.constexpr = tl.constexpr(0x4B400000)
FP8_MAX: tl.constexpr = tl.constexpr(fp8.MAX)
FP8_LEAST_SCALE: tl.constexpr = tl.constexpr(fp8.LEAST_SCALE)
FP8_LARGEST_FACTOR: tl.constexpr = tl.constexpr(1 / fp8.LEAST_SCALE)
# To add this to a number below 2^-6 leaves its multiple of 2^-9, the step of e4m3 there, in the last bits.
FP8_SUBNORMAL: tl.constexpr = tl.constexpr(2.0**14)
# A number divided by this is 0 in float16, as if divided by infinity.
BEYOND_FP16: tl.constexpr = tl.constexpr(2.0**60)
LOWEST_X: tl.constexpr = tl.constexpr(arithmetic.EXP_RANGE[0])
HIGHEST_X: tl.constexpr = tl.constexpr(arithmetic.EXP_RANGE[1])
INVERSE_LN2: tl.constexpr = tl.constexpr(arithmetic.INVERSE_LN2)
LN2_UPPER: tl.constexpr = tl.constexpr(arithmetic.LN2_UPPER)
LN2_LOWER: tl.constexpr = tl.constexpr(arithmetic.LN2_LOWER)
P4, P3, P2, P1, P0 = (tl.constexpr(coefficient) for coefficient in arithmetic.EXP_POLYNOMIAL)


def converts_fp8(x: torch.Tensor) -> bool:
    """Whether a tensor's device has an instruction that rounds to e4m3."""
    return not INTERPRETED and compute_capability(x.device.index or 0) >= CONVERTS_FP8


def starts_early(x: torch.Tensor) -> dict[str, bool]:
    """How a kernel is launched that calls ``wait``: on Hopper, while the one before it ends."""
    early = not INTERPRETED and compute_capability(x.device.index or 0) >= STARTS_EARLY
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}


def few(x: torch.Tensor) -> bool:
    """Whether rows are so few that a kernel is a matter of latency: warps are many, weights are loaded before x is."""
    return len(x) <= FEW_ROWS


def in_registers(x: torch.Tensor) -> dict[str, int]:
    """The schedule of a kernel whose program holds one row: so many pieces of a power of two of places, and warps."""
    channels = x.shape[1]
    if few(x):
        warps = min(warps_for(channels, HELD_OF_FEW), MOST_WARPS)
    else:
        warps = max(min(warps_for(channels, HELD), FEW_WARPS), warps_for(channels, MOST_HELD))
    piece = AT_ONCE * WARP * warps
    return {"PIECE": piece, "PIECES": triton.cdiv(channels, piece), "num_warps": warps}


def warps_for(channels: int, held: int) -> int:
    """The power of two of them whose threads hold no more channels than that."""
    return int(triton.next_power_of_2(triton.cdiv(channels, held * WARP)))


def in_pieces(x: torch.Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid and schedule of a kernel whose program computes a piece of one row."""
    piece = min(triton.next_power_of_2(max(x.shape[1], AT_ONCE * WARP)), MOST_IN_PIECE)
    schedule = {"PIECE": piece, "PIECES": 1, "num_warps": max(piece // (2 * AT_ONCE * WARP), 1)}
    return (len(x), triton.cdiv(x.shape[1], piece)), schedule


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
            pieces += (piece_of(weight, i * PIECE, channels, 0.0, PIECE),)
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
    for i in tl.static_range(PIECES):
        columns = i * held[0].shape[0] + tl.arange(0, held[0].shape[0])
        scaled = held[i].to(tl.float32) * factor
        q = to_int8(scaled, False) if KIND == "int8" else to_fp8(rounded(scaled, tl.bfloat16), CONVERTS)
        tl.store(out + columns, q, mask=columns < channels)
