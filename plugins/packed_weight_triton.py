"""Integers as weight-only checkpoints pack them, taken apart word by word in Triton: shared by the products and by what
writes a dequantized weight.

A word has 32 bits, a *line* the words of one output, or of two that share bytes. Two neighbouring input channels make a
*pair*; a word holds two or four. Every value that comes out is equal to the bit to the reference's ``dequantized``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arithmetic_triton import INTERPRETS, rounded
from .kernels import cdiv

# How a matrix lies in memory: "rows" has two outputs a byte (AWQ's files), the rest are streams of mixed GEMMs, "fp8"
# the one of SM 80 to 89 whose activations become FP8.
LAYOUTS = {"rows": 0, "sm80": 1, "sm90": 2, "fp8": 3}
ROWS: tl.constexpr = tl.constexpr(0)
SM80: tl.constexpr = tl.constexpr(1)
SM90: tl.constexpr = tl.constexpr(2)
FP8: tl.constexpr = tl.constexpr(3)
# A float32 of 2**23 has no bits behind the point: its last ones are the integer that was put there.
INTEGER_BITS: tl.constexpr = tl.constexpr(0x4B000000)
INTEGER: tl.constexpr = tl.constexpr(2.0**23)
# Two 4-bit integers under the exponents of 1024 and of 128; of signed ones the highest bit is turned.
SIGNED_FLOAT16: tl.constexpr = tl.constexpr("lop3.b32 t, $2, 0x000f000f, 0x64086408, 0x6a;")
UNSIGNED_FLOAT16: tl.constexpr = tl.constexpr("lop3.b32 t, $2, 0x000f000f, 0x64006400, 0xea;")
SIGNED_BFLOAT16: tl.constexpr = tl.constexpr("lop3.b32 t, $2, 0x000f000f, 0x43084308, 0x6a;")
UNSIGNED_BFLOAT16: tl.constexpr = tl.constexpr("lop3.b32 t, $2, 0x000f000f, 0x43004300, 0xea;")
# Channels of a per-channel weight that a program takes at a time, as it does a group of the others.
CHUNKS = (128, 64)


def words_of(packed: torch.Tensor) -> torch.Tensor:
    """The packed bytes, in whatever dtype they are viewed as, as int32 words [words]."""
    return packed.reshape(-1).view(torch.int32)


def group_of(scale: torch.Tensor, channels: int) -> tuple[int, int]:
    """Channels that are taken together and the groups between them: (group, 1), or (chunk, 0) with one scale for all.

    Args:
        scale: [groups, out].
        channels: of the input.
    """
    if len(scale) > 1:
        return channels // len(scale), 1
    return next(chunk for chunk in CHUNKS if channels % chunk == 0), 0


@triton.jit  # type: ignore[untyped-decorator]
def address(line, word, words, LAYOUT: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where a line's word lies: lines one after the other, or a few of them taking turns, tile by tile."""
    if (LAYOUT == ROWS) | (LAYOUT == SM90):
        return line.to(tl.int64) * words + word
    lines: tl.constexpr = 4 if (LAYOUT == SM80) & (BITS == 4) else 2
    tile: tl.constexpr = 8 if (LAYOUT == SM80) & (BITS == 4) else 16
    first = (line // lines).to(tl.int64) * (words * lines)
    return first + (word // tile * (tile * lines) + line % lines * tile + word % tile)


@triton.jit  # type: ignore[untyped-decorator]
def channel(word, pair: tl.constexpr, LAYOUT: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first of the two neighbouring input channels of a word's pair."""
    if LAYOUT == ROWS:
        return word * 4 + 2 * pair
    if LAYOUT == SM90:
        return word * (32 // BITS) + 2 * pair
    run = word // 4 * (128 // BITS)
    if LAYOUT == SM80:
        return run + word % 4 * 2 + 8 * pair
    return run + word % 4 * 4 + (pair // 2 * 16 + pair % 2 * 2)


@triton.jit  # type: ignore[untyped-decorator]
def unsigned(word, LAYOUT: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A word whose integers have 2^(b-1) added, as those of streams for SM 80 have already."""
    if (LAYOUT == SM80) | (LAYOUT == FP8):
        return word
    return word ^ (-0x77777778 if BITS == 4 else -0x7F7F7F80)


@triton.jit  # type: ignore[untyped-decorator]
def at(word, shift: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The signed integer of an ``unsigned`` word that starts at a bit, as float32."""
    bits = (word >> shift) & ((1 << BITS) - 1) | INTEGER_BITS
    return bits.to(tl.float32, bitcast=True) - (INTEGER + (1 << BITS - 1))


@triton.jit  # type: ignore[untyped-decorator]
def integer(  # type: ignore[no-untyped-def]
    word, pair: tl.constexpr, half: tl.constexpr, odd: tl.constexpr, LAYOUT: tl.constexpr, BITS: tl.constexpr
):
    """One signed integer of an ``unsigned`` word, as float32: of a pair's channel, and of the line's output."""
    shift: tl.constexpr = (
        16 * pair + 8 * half + 4 * odd
        if LAYOUT == ROWS
        else BITS * (2 * pair + half)
        if LAYOUT == SM90
        else BITS * pair + 16 * half
    )
    return at(word, shift, BITS)


@triton.jit  # type: ignore[untyped-decorator]
def dequantized(q, scale, zero, ZERO: tl.constexpr, TWICE: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """q * scale + zero as DTYPE has it: rounded once, or the product too; float32."""
    value = q * scale
    if ZERO:
        if TWICE:
            value = rounded(value, DTYPE)
        value += zero
    return rounded(value, DTYPE)


@triton.jit  # type: ignore[untyped-decorator]
def product_of_two(word, scale, LAYOUT: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Two 4-bit integers of a word as it lies, in bits 0 and 16, times a scale, rounded to DTYPE: two float32.

    They become 16-bit floats by what stands before them: 1024 + 8 + q, 128 + 8 + q; that is exact.
    """
    bits = scale.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    both = bits | (bits << 16)
    signed: tl.constexpr = (LAYOUT == ROWS) | (LAYOUT == SM90)
    if tl.bfloat16 == DTYPE:
        low, high = tl.inline_asm_elementwise(
            "{ .reg .b32 t, o, c, z; mov.b32 o, 0x3f803f80; mov.b32 c, 0xc308c308; mov.b32 z, 0x80008000;"
            + (SIGNED_BFLOAT16 if signed else UNSIGNED_BFLOAT16)
            + "fma.rn.bf16x2 t, t, o, c; fma.rn.bf16x2 t, t, $3, z; shl.b32 $0, t, 16; and.b32 $1, t, 0xffff0000; }",
            "=r,=r,r,r",
            [word, both],
            dtype=(tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
    else:
        low, high = tl.inline_asm_elementwise(
            "{ .reg .b32 t, c; .reg .b16 l, h; .reg .f32 f, g; mov.b32 c, 0x64086408;"
            + (SIGNED_FLOAT16 if signed else UNSIGNED_FLOAT16)
            + "sub.rn.f16x2 t, t, c; mul.rn.f16x2 t, t, $3; mov.b32 {l, h}, t;"
            + "cvt.f32.f16 f, l; cvt.f32.f16 g, h; mov.b32 $0, f; mov.b32 $1, g; }",
            "=r,=r,r,r",
            [word, both],
            dtype=(tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
    return low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)


def sums(dtype: torch.dtype, bits: int, layout: str, twice: bool) -> str:
    """Instructions for two integers of a word, in bits 0 and 16, times a scale plus a zero: two float32, rounded.

    Of float16, float32 holds the product, so that it and the sum are one instruction; of bfloat16 it may overflow.
    """
    half = 1 << bits - 1
    before, less = 0x4B000000 | (half if layout in ("rows", "sm90") else 0), 0x4B000000 | half
    made = "{ .reg .b32 t, l, u; .reg .b16 h, i; .reg .f32 a, b; "
    for target, shift in (("a", 0), ("b", 16)):
        made += f"shr.u32 t, $2, {shift}; lop3.b32 t, t, {(1 << bits) - 1:#x}, {before:#x}, 0x6a; "
        made += f"mov.b32 {target}, t; sub.rn.f32 {target}, {target}, 0f{less:08x}; "
    if dtype == torch.float16:
        made += "fma.rn.f32 a, a, $3, $4; fma.rn.f32 b, b, $3, $4; cvt.rn.f16x2.f32 t, b, a; "
        return made + "mov.b32 {h, i}, t; cvt.f32.f16 $0, h; cvt.f32.f16 $1, i; }"
    narrow = "cvt.rn.bf16x2.f32 t, b, a; shl.b32 l, t, 16; and.b32 u, t, 0xffff0000; "
    made += "mul.rn.f32 a, a, $3; mul.rn.f32 b, b, $3; "
    if twice:
        made += narrow + "mov.b32 a, l; mov.b32 b, u; "
    return made + "add.rn.f32 a, a, $4; add.rn.f32 b, b, $4; " + narrow + "mov.b32 $0, l; mov.b32 $1, u; }"


@triton.jit  # type: ignore[untyped-decorator]
def two(  # type: ignore[no-untyped-def]
    word,
    s,
    z,
    k: tl.constexpr,
    ZERO: tl.constexpr,
    TWICE: tl.constexpr,
    LAYOUT: tl.constexpr,
    BITS: tl.constexpr,
    DTYPE: tl.constexpr,
    SUMS: tl.constexpr,
):
    """The dequantized weights of a word's integers k and k + 16 / BITS, counted from its lowest bits: two float32.

    Args:
        SUMS: ``sums``.
    """
    if (BITS == 4) & (not ZERO) & (not INTERPRETS):
        low, high = product_of_two(word >> (4 * k), s, LAYOUT, DTYPE)
    elif ZERO & (not INTERPRETS):
        low, high = tl.inline_asm_elementwise(
            SUMS, "=f,=f,r,f,f", [word >> (BITS * k), s, z], dtype=(tl.float32, tl.float32), is_pure=True, pack=1
        )
    else:
        bits = unsigned(word, LAYOUT, BITS)
        low = dequantized(at(bits, BITS * k, BITS), s, z, ZERO, TWICE, DTYPE)
        high = dequantized(at(bits, BITS * k + 16, BITS), s, z, ZERO, TWICE, DTYPE)
    return low, high


@triton.jit  # type: ignore[untyped-decorator]
def halves(pair, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Two neighbouring 16-bit floats, loaded as one int32, as float32."""
    if tl.bfloat16 == DTYPE:
        return (pair << 16).to(tl.float32, bitcast=True), (pair & -0x10000).to(tl.float32, bitcast=True)
    low, high = pair.to(tl.int16), (pair >> 16).to(tl.int16)
    return low.to(tl.float16, bitcast=True).to(tl.float32), high.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def joined(low, high):  # type: ignore[no-untyped-def]
    """Two 16-bit floats as one int32, the inverse of ``halves``."""
    low, high = low.to(tl.int16, bitcast=True), high.to(tl.int16, bitcast=True)
    return (low.to(tl.int32) & 0xFFFF) | (high.to(tl.int32) << 16)


def dequantize(
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    sm: int | None = None,
    *,
    out: int,
    bits: int,
    layout: str,
) -> torch.Tensor:
    """The packed weight times its scale plus zero, [out, in] in the dtype of its scales: as ``dequantized``.

    Args:
        packed: the checkpoint's bytes.
        scale, zero: [in / group, out], or [1, out] per channel.
        sm: as for ``dequantized``.
        out: output channels.
        bits: of an integer, 4 or 8.
        layout: one of ``LAYOUTS``.
    """
    words, shared = words_of(packed), 2 if layout == "rows" else 1
    lines = out // shared
    channels = len(words) * (32 // bits) // out
    group, step = group_of(scale, channels)
    weight = scale.new_empty(out, channels)
    twice = sm == 90 and scale.dtype == torch.bfloat16
    per_line = len(words) // lines
    block = 64
    grid = (cdiv(lines, 16), cdiv(per_line, block))
    dequantize_kernel[grid](
        words,
        scale,
        scale if zero is None else zero,
        weight.view(torch.int32),
        lines,
        channels,
        per_line,
        *scale.stride(),
        step * per_line * group // channels,
        ZERO=zero is not None,
        TWICE=twice,
        LAYOUT=LAYOUTS[layout],
        BITS=bits,
        LINES=16,
        WORDS=block,
    )
    return weight


@triton.jit  # type: ignore[untyped-decorator]
def dequantize_kernel(  # type: ignore[no-untyped-def]
    packed,
    scale,
    zero,
    weight,
    lines,
    channels,
    words,
    group_stride,
    out_stride,
    words_of_group,
    ZERO: tl.constexpr,
    TWICE: tl.constexpr,
    LAYOUT: tl.constexpr,
    BITS: tl.constexpr,
    LINES: tl.constexpr,
    WORDS: tl.constexpr,
):
    """One tile of lines and words."""
    outputs: tl.constexpr = 2 if LAYOUT == ROWS else 1
    DTYPE: tl.constexpr = scale.dtype.element_ty
    line = (tl.program_id(0) * LINES + tl.arange(0, LINES))[:, None]
    word = (tl.program_id(1) * WORDS + tl.arange(0, WORDS))[None, :]
    there = (line < lines) & (word < words)
    bits = tl.load(packed + address(line, word, words, LAYOUT, BITS), mask=there, other=0)
    bits = unsigned(bits, LAYOUT, BITS)
    group = word // words_of_group if words_of_group > 0 else word * 0
    for odd in tl.static_range(outputs):
        out = line * outputs + odd
        scales = group * group_stride + out * out_stride
        s = tl.load(scale + scales, mask=there, other=0.0).to(tl.float32)
        z = tl.load(zero + scales, mask=there, other=0.0).to(tl.float32) if ZERO else s
        for pair in tl.static_range(16 // BITS // outputs):
            low = dequantized(integer(bits, pair, 0, odd, LAYOUT, BITS), s, z, ZERO, TWICE, DTYPE)
            high = dequantized(integer(bits, pair, 1, odd, LAYOUT, BITS), s, z, ZERO, TWICE, DTYPE)
            place = out.to(tl.int64) * channels + channel(word, pair, LAYOUT, BITS)
            tl.store(weight + place // 2, joined(low.to(DTYPE), high.to(DTYPE)), mask=there)
