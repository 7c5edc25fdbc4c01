"""What the lanes of a warp bring to a tensor core of one token times a packed weight, in Triton.

A product of matrices wants 16 rows, 16 channels and 8 columns: a lane brings four channels' weights of two outputs, and
the same channels' inputs, so that row g times column g is the sum of what lanes 4 g to 4 g + 3 bring. The rest is left
aside. Four sums a lane hold two rows of two columns.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from .arithmetic_triton import INTERPRETS
from .packed_fields_triton import dequantizing
from .packed_weight_triton import ROWS, at, dequantized, halves, unsigned

# Row g times column g: of lane l it is among the sums if l % 4 is g // 2, the second of two if g is odd.
DIAGONAL: tl.constexpr = tl.constexpr(
    "{ .reg .b32 l, d, e; .reg .pred p, q; .reg .f32 f, g; mov.u32 l, %laneid;"
    "shr.u32 d, l, 3; and.b32 e, l, 3; setp.eq.u32 p, d, e; and.b32 d, l, 4; setp.ne.u32 q, d, 0;"
    "selp.f32 f, $3, $2, q; selp.f32 g, $5, $4, q; selp.f32 $0, f, 0f00000000, p; selp.f32 $1, g, 0f00000000, p; }"
)


@cache
def instructions(dtype: torch.dtype, bits: int, layout: str, zero: bool, twice: bool, once: bool) -> tuple[str, str]:
    """What adds to four sums the products of a word of two outputs, and its constraints.

    The operands are the sums, both words (of one line the same), both scales and zeros, each twice in a register, the
    pairs of inputs in the order of the weights' pairs, and the sums before.
    """
    pairs = layout == "rows"
    inputs = 16 // bits // (2 if pairs else 1)
    names = ["wa", "wb", "sa", "sb", "za", "zb", *(f"x{i}" for i in range(inputs)), *(f"c{i}" for i in range(4))]
    operand = {name: f"${4 + i}" for i, name in enumerate(names)}
    kind = "f16" if dtype == torch.float16 else "bf16"
    lines = ["{ .reg .b32 w, t, u, v, a0, a1, a2, a3; .reg .b16 h, i; .reg .f32 f, g, a, b;"]
    lines += [f"mov.f32 ${i}, {operand[f'c{i}']};" for i in range(4)]
    for place in range(inputs):
        for output in range(2):
            k = 2 * place + output if pairs else place
            word, scale, zeros = (operand[name + "ab"[output]] for name in "wsz")
            target = f"a{place % 2 * 2 + output}"
            added = zeros if zero else None
            lines.append(dequantizing(target, word, k, scale, added, dtype, bits, layout, twice, once))
        if place % 2:
            both = f"{{{operand[f'x{place - 1}']}, {operand[f'x{place}']}}}"
            lines.append(f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32")
            lines.append(f"{{$0, $1, $2, $3}}, {{a0, a1, a2, a3}}, {both}, {{$0, $1, $2, $3}};")
    constraints = ["=&f"] * 4 + ["r"] * (6 + inputs) + ["f"] * 4
    return " ".join([*lines, "}"]), ",".join(constraints)


@triton.jit
def twice_in_one(x):  # type: ignore[no-untyped-def]
    """A 16-bit float twice in an int32."""
    bits = x.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return bits | (bits << 16)


@triton.jit  # type: ignore[untyped-decorator]
def added(  # type: ignore[no-untyped-def]
    sums,
    word,
    other,
    scales,
    inputs,
    INSTRUCTIONS: tl.constexpr,
    CONSTRAINTS: tl.constexpr,
    ZERO: tl.constexpr,
    TWICE: tl.constexpr,
    LAYOUT: tl.constexpr,
    BITS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Four sums of two outputs, and what a word of each adds to them."""
    if ZERO:
        s, z, s_other, z_other = scales
    else:
        s, s_other = scales
        z, z_other = s, s_other
    if not INTERPRETS:
        operands = (word, other, s, s_other, z, z_other)
        operands += inputs
        operands += sums
        return tl.inline_asm_elementwise(
            INSTRUCTIONS,
            CONSTRAINTS,
            operands,
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    total, total_other, outputs = sums[0], sums[2], 2 if LAYOUT == ROWS else 1
    for k in tl.static_range(len(inputs)):
        x_low, x_high = halves(inputs[k], DTYPE)
        w_low, w_high = weights(word, s, z, outputs * k, ZERO, TWICE, LAYOUT, BITS, DTYPE)
        total += w_low * x_low + w_high * x_high
        w_low, w_high = weights(other, s_other, z_other, outputs * (k + 1) - 1, ZERO, TWICE, LAYOUT, BITS, DTYPE)
        total_other += w_low * x_low + w_high * x_high
    return total, sums[1], total_other, sums[3]


@triton.jit  # type: ignore[untyped-decorator]
def weights(  # type: ignore[no-untyped-def]
    word,
    s,
    z,
    k: tl.constexpr,
    ZERO: tl.constexpr,
    TWICE: tl.constexpr,
    LAYOUT: tl.constexpr,
    BITS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The dequantized weights of the integers k of a word's halves, as float32."""
    bits, s, z = unsigned(word, LAYOUT, BITS), halves(s, DTYPE)[0], halves(z, DTYPE)[0]
    low = dequantized(at(bits, BITS * k, BITS), s, z, ZERO, TWICE, DTYPE)
    return low, dequantized(at(bits, BITS * k + 16, BITS), s, z, ZERO, TWICE, DTYPE)


@triton.jit
def of_outputs(sums):  # type: ignore[no-untyped-def]
    """Of four sums what is of both outputs, float32 [threads, 2]; lanes that hold none of it have zeros."""
    if INTERPRETS:
        return tl.join(sums[0], sums[2])
    first, second = tl.inline_asm_elementwise(
        DIAGONAL, "=f,=f,f,f,f,f", sums, dtype=(tl.float32, tl.float32), is_pure=True, pack=1
    )
    return tl.join(first, second)
