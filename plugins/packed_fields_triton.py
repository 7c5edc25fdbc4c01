"""Integers of packed weights as tensor cores take them, in Triton: 16 bits at a time, a *field* of two or four of them.

Two neighbouring fields of a line lie in one register. Their integers at the same *place* are the two neighbouring
elements that a product of matrices reads, so that nothing is moved: they become floats by the exponent that is put
before them, and two of them are multiplied by their scale at a time. Weights are equal to the bit to the reference's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arithmetic_triton import INTERPRETS, rounded
from .launches import Launches
from .packed_weight_triton import ROWS, SM80, SM90, at, dequantized, unsigned

# By bits of an integer: those of a pair of fields, and half their range.
MASKS, HALVES = {4: 0x000F000F, 8: 0x00FF00FF}, {4: 8, 8: 128}


def instructions(dtype: torch.dtype, bits: int, layout: str, *, zero: bool, twice: bool, once: bool) -> tuple[str, str]:
    """What dequantizes two fields: [integers 0, 1, ...] of both, of both outputs of a line in turn where it has two.

    The operands are the dequantized pairs, the fields, and twice each of the scales and the zeros of even and of odd
    integers, two in an int32: of those, the first instructions take the lower half, the second ones the upper half.
    """
    made = []
    for half in (0x1010, 0x3232):
        lines = chosen(half, bits, zero=zero, pairs=layout == "rows")
        lines += multiplied(dtype, bits, layout, zero=zero, twice=twice, once=once)
        made.append("{ .reg .b32 w, t, u, v, s0, s1, z0, z1; .reg .b16 h, i; .reg .f32 f, g, a, b; " + lines + " }")
    return made[0], made[1]


def chosen(half: int, bits: int, *, zero: bool, pairs: bool) -> str:
    """One half of scales and zeros, twice in a register; those of odd integers where lines have two outputs."""
    first = 16 // bits + 1
    names = {
        "s0": 0,
        **({"s1": 2} if pairs else {}),
        **({"z0": 4} if zero else {}),
        **({"z1": 6} if zero and pairs else {}),
    }
    return " ".join(f"prmt.b32 {name}, ${first + i}, ${first + i}, {half:#x};" for name, i in names.items()) + " "


def multiplied(dtype: torch.dtype, bits: int, layout: str, *, zero: bool, twice: bool, once: bool) -> str:
    """Every integer of two fields times its scale, plus its zero."""
    lines = []
    for k in range(16 // bits):
        odd = k % 2 if layout == "rows" else 0
        zeros = f"z{odd}" if zero else None
        lines.append(dequantizing(f"${k}", f"${16 // bits}", k, f"s{odd}", zeros, dtype, bits, layout, twice, once))
    return " ".join(lines)


def dequantizing(
    target: str,
    source: str,
    place: int,
    scale: str,
    zero: str | None,
    dtype: torch.dtype,
    bits: int,
    layout: str,
    twice: bool,
    once: bool,
) -> str:
    """Two integers, in a place of a register's halves, times a scale plus a zero, as two 16-bit floats.

    Args:
        target, source, scale, zero: registers; both of the latter hold theirs twice.
        twice: the product is rounded before the zero is added.
        once: else one rounding of the sum is all: see ``sums_exactly``.
    """
    signed = HALVES[bits] if layout in ("rows", "sm90") else 0
    if (zero is not None and not once) or (bits, dtype) == (8, torch.bfloat16):
        return f"shr.u32 w, {source}, {bits * place}; " + by_float32(target, scale, zero, dtype, bits, signed, twice)
    if dtype == torch.float16:
        return by_float16(target, source, place, scale, zero, bits, signed)
    return f"shr.u32 w, {source}, {bits * place}; " + by_bfloat16(target, scale, zero, signed, twice)


def by_float16(target: str, source: str, place: int, scale: str, zero: str | None, bits: int, signed: int) -> str:
    """1024 + q, less that, times the scale; or, without a shift, (1024 + 16 q) / 16."""
    shift, up = (8 * (place // 2), 4 * (place % 2)) if bits == 4 else (8 * place, 0)
    before, mask, half = (0x6400 | signed << up) * 0x10001, MASKS[bits] << up, 0x6400 | HALVES[bits]
    made = f"shr.u32 w, {source}, {shift}; lop3.b32 t, w, {mask:#x}, {before:#x}, 0x6a; "
    if up:
        made += "mov.b32 u, 0x2c002c00; mov.b32 v, 0xd480d480; fma.rn.f16x2 t, t, u, v; "
    else:
        made += f"mov.b32 u, {half * 0x10001:#x}; sub.rn.f16x2 t, t, u; "
    if zero is None:
        return made + f"mul.rn.f16x2 {target}, t, {scale};"
    return made + f"fma.rn.f16x2 {target}, t, {scale}, {zero};"


def by_bfloat16(target: str, scale: str, zero: str | None, signed: int, twice: bool) -> str:
    """128 + q, less that, times the scale: of 4 bits, in the last ones of w."""
    made = f"lop3.b32 t, w, {MASKS[4]:#x}, {(0x4300 | signed) * 0x10001:#x}, 0x6a; "
    made += "mov.b32 u, 0x3f803f80; mov.b32 v, 0xc308c308; fma.rn.bf16x2 t, t, u, v; "
    if zero is not None and not twice:
        return made + f"fma.rn.bf16x2 {target}, t, {scale}, {zero};"
    made += f"mov.b32 v, 0x80008000; fma.rn.bf16x2 {target}, t, {scale}, v; "
    return made if zero is None else made + f"fma.rn.bf16x2 {target}, {target}, u, {zero};"


def sums_exactly(scale: torch.Tensor, zero: torch.Tensor) -> bool:
    """Whether float32 holds every q * scale + zero of 4-bit integers, so that a 16-bit fma rounds it as it does.

    So it is where none of the two is far larger than the other, as the zeros of asymmetric integers are.
    """
    s, z = scale.abs().double(), zero.abs().double()
    near = (z == 0) | ((z <= s * 2**12) & (s <= z * 2**8))
    ordinary = (s == 0) | ((s > 2.0**-100) & (s < 2.0**100))
    return bool((near & ordinary).all())


def by_float32(
    target: str, scale: str, zero: str | None, dtype: torch.dtype, bits: int, signed: int, twice: bool
) -> str:
    """Two products, which float32 holds, plus zeros; rounded to float32 and to the dtype, as the reference does."""
    kind = "f16" if dtype == torch.float16 else "bf16"
    made = widened("f", scale, dtype)
    for target32, shift in (("a", 0), ("b", 16)):
        made += f"shr.u32 t, w, {shift}; lop3.b32 t, t, {MASKS[bits] & 0xFFFF:#x}, {0x4B000000 | signed:#x}, 0x6a; "
        made += f"mov.b32 g, t; sub.rn.f32 g, g, 0f{0x4B000000 | HALVES[bits]:08x}; mul.rn.f32 {target32}, g, f; "
    if zero is not None:
        if twice:
            made += (
                "cvt.rn.bf16x2.f32 t, b, a; shl.b32 u, t, 16; mov.b32 a, u; and.b32 u, t, 0xffff0000; mov.b32 b, u; "
            )
        made += widened("f", zero, dtype) + "add.rn.f32 a, a, f; add.rn.f32 b, b, f; "
    return made + f"cvt.rn.{kind}x2.f32 {target}, b, a;"


def widened(target: str, pair: str, dtype: torch.dtype) -> str:
    """The first of two equal 16-bit floats as float32."""
    if dtype == torch.float16:
        return f"mov.b32 {{h, i}}, {pair}; cvt.f32.f16 {target}, h; "
    return f"and.b32 t, {pair}, 0xffff0000; mov.b32 {target}, t; "


@triton.jit  # type: ignore[untyped-decorator]
def half_of(pair, HALF: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """One of two 16-bit floats in an int32, as float32."""
    return (pair >> 16 * HALF).to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def weights(  # type: ignore[no-untyped-def]
    fields,
    s_even,
    s_odd,
    z_even,
    z_odd,
    HALF: tl.constexpr,
    INSTRUCTIONS: tl.constexpr,
    ZERO: tl.constexpr,
    TWICE: tl.constexpr,
    LAYOUT: tl.constexpr,
    BITS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The dequantized weights of fields' integers, counted from the lowest bits: a tuple of tensors like ``fields``.

    Args:
        fields: int16; their pairs share scales.
        s_even, s_odd, z_even, z_odd: scales and zeros that the integers of even and of odd numbers take, two in an
            int32, of which ``HALF`` says one.
    """
    made = ()
    if INTERPRETS:
        bits = unsigned(fields.to(tl.int32), LAYOUT, BITS)
        for k in tl.static_range(16 // BITS):
            s, z = (s_odd, z_odd) if (LAYOUT == ROWS) & (k % 2 == 1) else (s_even, z_even)
            s, z = half_of(s, HALF, DTYPE), half_of(z, HALF, DTYPE)
            value = dequantized(at(bits, BITS * k, BITS), s, z, ZERO, TWICE, DTYPE).to(DTYPE)
            made = (*made, value)  # type: ignore[assignment]
    elif BITS == 4:
        made = tl.inline_asm_elementwise(
            INSTRUCTIONS,
            "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r",
            [fields, s_even, s_odd, z_even, z_odd],
            dtype=(DTYPE.value, DTYPE.value, DTYPE.value, DTYPE.value),
            is_pure=True,
            pack=2,
        )
    else:
        made = tl.inline_asm_elementwise(
            INSTRUCTIONS,
            "=r,=r,r,r,r,r,r,r,r,r,r",
            [fields, s_even, s_odd, z_even, z_odd],
            dtype=(DTYPE.value, DTYPE.value),
            is_pure=True,
            pack=2,
        )
    return made


@triton.jit  # type: ignore[untyped-decorator]
def field_at(line, field, fields, LAYOUT: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where a line's field lies, as ``packed_weight_triton.address``."""
    if (LAYOUT == ROWS) | (LAYOUT == SM90):
        return line.to(tl.int64) * fields + field
    lines: tl.constexpr = 4 if (LAYOUT == SM80) & (BITS == 4) else 2
    tile: tl.constexpr = 16 if (LAYOUT == SM80) & (BITS == 4) else 32
    first = (line // lines).to(tl.int64) * (fields * lines) + line % lines * tile
    return first + (field // tile * (tile * lines) + field % tile)


@triton.jit  # type: ignore[untyped-decorator]
def channel_of(field, place: tl.constexpr, LAYOUT: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The input channel that a field's integer at a place multiplies; of two outputs' places, those of one."""
    if LAYOUT == ROWS:
        return field * 2 + place
    if LAYOUT == SM90:
        return field * (16 // BITS) + place
    run = field // 8 * (128 // BITS)
    if LAYOUT == SM80:
        return run + field % 8 + 8 * place
    return run + field % 8 // 2 * 4 + field % 2 + (place // 2 * 16 + place % 2 * 2)


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def arrange(  # type: ignore[no-untyped-def]
    x,
    prescale,
    arranged,
    tokens,
    channels,
    PRESCALE: tl.constexpr,
    LAYOUT: tl.constexpr,
    BITS: tl.constexpr,
    PLACES: tl.constexpr,
    STEP: tl.constexpr,
    EARLY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x p, [tokens, channels] -> [fields / step, places, tokens, step]: what the integers of fields multiply."""
    fields = channels // PLACES
    field = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.program_id(1)
    there = field < fields
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    for place in tl.static_range(PLACES):
        read = channel_of(field, place, LAYOUT, BITS)
        value = tl.load(x + token.to(tl.int64) * channels + read, mask=there, other=0.0)
        if PRESCALE:
            p = tl.load(prescale + read, mask=there, other=0.0).to(tl.float32)
            value = rounded(value.to(tl.float32) * p, x.dtype.element_ty).to(x.dtype.element_ty)
        row = (field // STEP * PLACES + place) * tokens + token
        tl.store(arranged + row * STEP + field % STEP, value, mask=there)


arranges = Launches(arrange)
