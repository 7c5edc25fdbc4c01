"""Integers as weight-only checkpoints pack them, taken apart word by word in Triton: shared by the products and by what
writes a dequantized weight.

A word has 32 bits, a *line* the words of one output, or of two that share bytes. Two neighbouring input channels make a
*pair*; a word holds two or four. Every value that comes out is equal to the bit to the reference's ``dequantized``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arithmetic_triton import OPTIONS, rounded
from .kernels import cdiv
from .launches import Launches

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
# Channels of a per-channel weight that a program takes at a time, as it does a group of the others.
CHUNKS = (128, 64)
# Lines, and quads of their words, of a tile that is dequantized.
LINES, QUADS = 8, 64


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


def rounds_twice(sm: int | None, dtype: torch.dtype) -> bool:
    """Whether a product of a weight and its scale is rounded before its zero is added, as kernels for SM 90 do."""
    return sm == 90 and dtype == torch.bfloat16


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
    quads = len(words) // lines // 4
    grid = (cdiv(lines, LINES), cdiv(quads, QUADS))
    launches[grid](
        words,
        scale,
        scale if zero is None else zero,
        weight.view(torch.int32),
        lines,
        channels,
        quads,
        step * scale.stride(0),
        scale.stride(1),
        quads * group // channels,
        ZERO=zero is not None,
        TWICE=rounds_twice(sm, scale.dtype),
        LAYOUT=LAYOUTS[layout],
        BITS=bits,
        LINES=LINES,
        QUADS=QUADS,
        **OPTIONS,
    )
    return weight


@triton.jit  # type: ignore[untyped-decorator]
def in_order(pairs, LAYOUT: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """What a quad's words hold, a tuple of their pairs [lines, quads, words], as [lines, channels / 2] of a line."""
    lines: tl.constexpr = pairs[0].shape[0]
    columns: tl.constexpr = pairs[0].shape[1] * 4 * len(pairs)
    if len(pairs) == 2:
        both = tl.join(pairs[0], pairs[1])
        both = tl.permute(both, (0, 1, 3, 2)) if LAYOUT == SM80 else both
    else:
        both = tl.join(tl.join(pairs[0], pairs[2]), tl.join(pairs[1], pairs[3]))
        if LAYOUT == SM80:
            both = tl.permute(both, (0, 1, 3, 4, 2))
        elif LAYOUT == FP8:
            both = tl.permute(both, (0, 1, 3, 2, 4))
    return tl.reshape(both, (lines, columns))


@triton.jit  # type: ignore[untyped-decorator]
def dequantize_kernel(  # type: ignore[no-untyped-def]
    packed,
    scale,
    zero,
    weight,
    lines,
    channels,
    quads,
    group_stride,
    out_stride,
    quads_of_group,
    ZERO: tl.constexpr,
    TWICE: tl.constexpr,
    LAYOUT: tl.constexpr,
    BITS: tl.constexpr,
    LINES: tl.constexpr,
    QUADS: tl.constexpr,
):
    """One tile of lines and quads of words."""
    outputs: tl.constexpr = 2 if LAYOUT == ROWS else 1
    pairs: tl.constexpr = 16 // BITS // outputs
    DTYPE: tl.constexpr = scale.dtype.element_ty
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    first = tl.program_id(1) * QUADS
    quad = first + tl.arange(0, QUADS)
    there = (line < lines)[:, None] & (quad < quads)[None, :]
    word = quad[None, :, None] * 4 + tl.arange(0, 4)[None, None, :]
    places = packed + address(line[:, None, None], word, quads * 4, LAYOUT, BITS)
    bits = unsigned(tl.load(places, mask=there[:, :, None], other=0), LAYOUT, BITS)
    column = first * (4 * pairs) + tl.arange(0, QUADS * 4 * pairs)
    inside = (line < lines)[:, None] & (column < channels // 2)[None, :]
    for odd in tl.static_range(outputs):
        out = line * outputs + odd
        scales = (quad // quads_of_group * group_stride)[None, :] + (out * out_stride)[:, None]
        s = tl.load(scale + scales, mask=there, other=0.0).to(tl.float32)[:, :, None]
        z = tl.load(zero + scales, mask=there, other=0.0).to(tl.float32)[:, :, None] if ZERO else s
        made = ()
        for pair in tl.static_range(pairs):
            low = dequantized(integer(bits, pair, 0, odd, LAYOUT, BITS), s, z, ZERO, TWICE, DTYPE)
            high = dequantized(integer(bits, pair, 1, odd, LAYOUT, BITS), s, z, ZERO, TWICE, DTYPE)
            made += (joined(low.to(DTYPE), high.to(DTYPE)),)  # type: ignore[assignment]
        places = weight + (out.to(tl.int64) * (channels // 2))[:, None] + column[None, :]
        tl.store(places, in_order(made, LAYOUT, BITS), mask=inside)


launches = Launches(dequantize_kernel)
