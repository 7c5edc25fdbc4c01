"""Arithmetic of kernels that PyTorch has no function for: fused multiply-adds, quotients, sums by halves, ranges."""

from __future__ import annotations

from .lazy import torch

# What the per-token kernels start a row's largest value at, in the row's dtype.
LEAST_RANGE = 1e-6
# The last of a float64's 53 bits that a float32 has no room for.
BEYOND_FLOAT32 = 2**29 - 1
# A float32 of this size has no bits behind the point: to add and subtract it rounds to the nearest, half to even.
NO_FRACTION = 1.5 * 2**23
# Beyond these e^x is 0 and infinite in float32.
EXP_RANGE = (-105.0, 89.0)
# float32 numbers all: 1 / ln 2; ln 2 in a part of 10 bits and the rest; (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2.
INVERSE_LN2 = float.fromhex("0x1.715476p+0")
LN2_UPPER, LN2_LOWER = float.fromhex("0x1.63p-1"), float.fromhex("-0x1.bd0106p-13")
EXP_POLYNOMIAL = tuple(
    map(float.fromhex, ("0x1.6a23ccp-10", "0x1.123a20p-7", "0x1.5558f2p-5", "0x1.555492p-3", "0x1.fffffcp-2"))
)


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a b + c, rounded once, to c's dtype.

    Args:
        a, b: [...], any floating dtype up to float32.
        c: [...], float32, float16 or bfloat16.
    """
    exact = a.double() * b.double() + c.double()
    return exact.float() if c.dtype == torch.float32 else rounded_to_odd(exact).to(c.dtype)


def rounded_to_odd(x: torch.Tensor) -> torch.Tensor:
    """float64 -> float32, the last bit standing for all that are cut off: to round that again is to round x once."""
    bits = x.view(torch.int64)
    lost = (bits & BEYOND_FLOAT32) != 0
    return ((bits | lost.long() << 29) & ~BEYOND_FLOAT32).view(torch.float64).float()


def quotients(number: float, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """number / x and x / number, each rounded once; PyTorch's operators multiply by a rounded reciprocal."""
    numbers = torch.full_like(x, number)
    return numbers / x, x / numbers


def warp_sum(x: torch.Tensor) -> torch.Tensor:
    """[..., lanes] -> [..., 1], lanes a power of two: the upper half is added to the lower one until one is left."""
    while x.shape[-1] > 1:
        lower, upper = x.chunk(2, -1)
        x = lower + upper
    return x


def row_range(x: torch.Tensor) -> torch.Tensor:
    """The largest |x| of every row, at least 1e-6 as x's dtype has it: [tokens, channels] -> float32 [tokens, 1]."""
    return x.abs().amax(-1, keepdim=True).clamp_min_(LEAST_RANGE).float()


def reciprocal_root(x: torch.Tensor) -> torch.Tensor:
    """1 / sqrt(x) of float32, the root and the quotient each rounded once, which no device's rsqrt promises.

    Nor does a CPU's sqrt: of a float32 it is off by one in the last bit in a root of eleven. A float64's may be too,
    but no root of a float32 lies that near to the middle of two.
    """
    return x.double().sqrt_().float().reciprocal_()


def sums_of_eight(x: torch.Tensor) -> torch.Tensor:
    """Of eight neighbours, added in pairs three times: float32 [tokens, channels] -> [tokens, ceil(channels / 8)]."""
    if x.shape[-1] % 8:
        x = torch.nn.functional.pad(x, (0, -x.shape[-1] % 8))
    for _ in range(3):
        x = x[:, 0::2] + x[:, 1::2]
    return x


def sum_in_any_order(x: torch.Tensor) -> torch.Tensor:
    """The sum of every row, the same in whatever order a device adds the sums of eight neighbours.

    n of those, the largest of them s, are rounded to the last place of n s in float64; whole multiples of one step that
    never need more than 53 bits are added without error. What rounding loses is below 2^-53 n^2 s; the sums of eight
    are float32's, each within 3 * 2^-24 of the sum of its magnitudes.

    Args:
        x: float32 [tokens, channels].

    Returns:
        float64 [tokens, 1].
    """
    sums = sums_of_eight(x)
    bound, count = sums.abs().amax(-1, keepdim=True).double(), sums.shape[-1]
    return torch.add(sums, bound, alpha=count).sub_(bound, alpha=count).sum(-1, keepdim=True)


def exp(x: torch.Tensor) -> torch.Tensor:
    """e^x of IEEE sums and products alone, the same on every device; at most 1 ulp off, float32 -> float32.

    e^x = 2^n e^r with n = round(x / ln 2) and r = x - n ln 2, taken off in two parts of which the first times n is
    exact; e^r = 1 + (r + r^2 p(r)), p of degree 4; 2^n in two factors, since n reaches from -151 to 128.
    """
    x = x.clamp(*EXP_RANGE)
    n = (x * INVERSE_LN2 + NO_FRACTION) - NO_FRACTION
    r = (x - n * LN2_UPPER) - n * LN2_LOWER
    p = torch.full_like(r, EXP_POLYNOMIAL[0])
    for coefficient in EXP_POLYNOMIAL[1:]:
        p = p * r + coefficient
    y = (r * r * p + r) + 1
    exponent = n.int()
    half = exponent >> 1
    return y * power_of_two(half) * power_of_two(exponent - half)


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2^exponent of int32 exponents between -126 and 127, float32."""
    return ((exponent + 127) << 23).view(torch.float32)
