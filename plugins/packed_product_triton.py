"""x times a packed weight for few tokens, in Triton; what both weight-only plugins' kernels share.

One token is multiplied on CUDA cores: a program sums the whole input for a few outputs, in registers, and no
sum crosses programs; on Hopper its first weights are loaded before the kernel that makes the input has ended. Up to
``MOST_TOKENS``, tensor cores multiply (``packed_few_triton``). Beyond, the weight is dequantized into memory.
Dequantized weights and prescaled inputs are equal to the bit; sums of float32 differ by their order, which depends on
shapes alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import packed_few_triton
from .arithmetic_triton import rounded
from .kernels import cdiv, starts_early
from .packed_weight_triton import (
    LAYOUTS,
    ROWS,
    SM80,
    SM90,
    address,
    dequantize,
    group_of,
    halves,
    sums,
    two,
    words_of,
)

# The bound of a sum's error, over the sum of its products' absolute values, per channel: tensor cores cut off, of 17
# addends for 16 channels, what lies beyond 24 bits of the largest.
ERROR = 2.0**-22
# Tokens for which a weight is read as it is packed.
MOST_TOKENS = 64
# Lines of a program of CUDA cores, a warp for two or for one where that leaves fewer programs than keep a GPU busy.
LINES, PROGRAMS = 16, 256
# Words of every output that CUDA cores read at a time, 16 bytes a lane: the inputs for them are no more than a program
# has threads, so that Triton loads them where they are multiplied.
WORDS = 128


def product(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    prescale: torch.Tensor | None = None,
    zero: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    bits: int,
    layout: str,
    sm: int | None = None,
) -> torch.Tensor:
    """y = (x p) @ (weight * scale + zero).T + bias, [tokens, out] in x's dtype.

    Args:
        x: [tokens, in], float16 or bfloat16; rows lie one after the other.
        packed: the checkpoint's bytes, in whatever dtype they are viewed as.
        scale, zero: [in / group, out] at any strides, or [1, out] with one scale per channel; x's dtype.
        prescale: p, [in] or [1, in] in x's dtype; x p is rounded to it.
        bias: [out] in x's dtype, added before the sum is rounded.
        bits: of an integer, 4 or 8.
        layout: one of ``LAYOUTS``.
        sm: as for ``dequantized``.
    """
    out, channels = scale.shape[1], x.shape[1]
    if len(x) > MOST_TOKENS:
        scaled = x if prescale is None else x * prescale.view(1, -1)
        weight = dequantize(packed, scale, zero, sm, out=out, bits=bits, layout=layout)
        return torch.nn.functional.linear(scaled, weight, bias)
    twice = sm == 90 and x.dtype == torch.bfloat16
    if len(x) > 1:
        return packed_few_triton.product(x, packed, scale, prescale, zero, bias, bits=bits, layout=layout, twice=twice)
    y = x.new_empty(len(x), out)
    if not len(x):
        return y
    words, outputs = words_of(packed), 2 if layout == "rows" else 1
    group, step = group_of(scale, channels)
    unit = torch.int64 if layout in ("rows", "sm90") else torch.int32
    lines = LINES if out >= LINES * outputs * PROGRAMS else LINES // 2
    one_token[(cdiv(out // outputs, lines),)](
        x.contiguous().view(unit),
        words,
        scale,
        scale if zero is None else zero,
        x if prescale is None else prescale.view(unit),
        x if bias is None else bias,
        y,
        out,
        channels // group,
        step * scale.stride(0),
        scale.stride(1),
        ZERO=zero is not None,
        TWICE=twice,
        PRESCALE=prescale is not None,
        BIAS=bias is not None,
        LAYOUT=LAYOUTS[layout],
        BITS=bits,
        LINES=lines,
        WORDS=len(words) * outputs // out * group // channels,
        STEP=WORDS,
        UNROLL=2,
        SUMS=sums(x.dtype, bits, layout, twice),
        num_warps=LINES // 2,
        **starts_early(x),
    )
    return y


@triton.jit  # type: ignore[untyped-decorator]
def inputs_of_words(x, word, there, LAYOUT: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The inputs that words multiply, in the order of their channels: a tuple of float32 tensors, of words each."""
    if (LAYOUT == SM90) & (BITS == 4):
        place, here = word[:, :, None] * 2 + tl.arange(0, 2)[None, None, :], there[:, :, None]
        first, second = tl.split(tl.load(x + place, mask=here, other=0))
        read = of_four(first, DTYPE) + of_four(second, DTYPE)
    elif (LAYOUT == ROWS) | (LAYOUT == SM90):
        read = of_four(tl.load(x + word, mask=there, other=0), DTYPE)
    else:
        step: tl.constexpr = 1 if LAYOUT == SM80 else 2
        twos = word // 4 * (64 // BITS) + word % 4 * step
        read = halves(tl.load(x + twos, mask=there, other=0), DTYPE)
        for pair in tl.static_range(1, 16 // BITS):
            place = twos + (4 * pair if LAYOUT == SM80 else pair // 2 * 8 + pair % 2)
            read = read + halves(tl.load(x + place, mask=there, other=0), DTYPE)
    return read


@triton.jit  # type: ignore[untyped-decorator]
def of_four(four, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Four 16-bit floats, loaded as one int64, as float32."""
    return halves(four.to(tl.int32), DTYPE) + halves((four >> 32).to(tl.int32), DTYPE)


@triton.jit  # type: ignore[untyped-decorator]
def read_by(read, place: tl.constexpr, LAYOUT: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a word's inputs, those that an output's integer ``place`` of the lower half and of the upper one multiply."""
    if LAYOUT == ROWS:
        return read[place], read[place + 2]
    if LAYOUT == SM90:
        return read[place], read[place + 16 // BITS]
    return read[2 * place], read[2 * place + 1]


@triton.jit  # type: ignore[untyped-decorator]
def spread(scale, WORDS: tl.constexpr):  # type: ignore[no-untyped-def]
    """[lines, groups] -> [lines, words]."""
    lines: tl.constexpr = scale.shape[0]
    groups: tl.constexpr = scale.shape[1]
    return tl.reshape(tl.broadcast_to(scale[:, :, None], (lines, groups, WORDS)), (lines, groups * WORDS))


@triton.jit  # type: ignore[untyped-decorator]
def one_token(  # type: ignore[no-untyped-def]
    x,
    packed,
    scale,
    zero,
    prescale,
    bias,
    y,
    out_features,
    ALL_GROUPS: tl.constexpr,
    group_stride,
    out_stride,
    ZERO: tl.constexpr,
    TWICE: tl.constexpr,
    PRESCALE: tl.constexpr,
    BIAS: tl.constexpr,
    LAYOUT: tl.constexpr,
    BITS: tl.constexpr,
    LINES: tl.constexpr,
    WORDS: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
    EARLY: tl.constexpr,
    SUMS: tl.constexpr,
):
    """All of the input for a few lines, [lines, words] at a time, a warp's lines its own."""
    outputs: tl.constexpr = 2 if LAYOUT == ROWS else 1
    DTYPE: tl.constexpr = scale.dtype.element_ty
    line = (tl.program_id(0) * LINES + tl.arange(0, LINES))[:, None]
    inside = line < out_features // outputs
    even = tl.zeros((LINES, STEP), tl.float32)
    odds = even
    first = tl.arange(0, STEP)[None, :]
    places = packed + address(line, first, ALL_GROUPS * WORDS, LAYOUT, BITS)
    held = tl.load(places, mask=(first < ALL_GROUPS * WORDS) & inside, other=0)
    if EARLY:
        # The next kernel may start before the input is read only where lines do not take turns: measured.
        if LAYOUT == SM90:
            tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for start in tl.range(0, ALL_GROUPS * WORDS, STEP, loop_unroll_factor=UNROLL):
        word = (start + tl.arange(0, STEP))[None, :]
        here = word < ALL_GROUPS * WORDS
        group = (start // WORDS + tl.arange(0, STEP // WORDS))[None, :]
        known = (group < ALL_GROUPS) & inside
        bits = held
        after = word + STEP
        places = packed + address(line, after, ALL_GROUPS * WORDS, LAYOUT, BITS)
        held = tl.load(places, mask=(after < ALL_GROUPS * WORDS) & inside, other=0)
        read = inputs_of_words(x, word, here, LAYOUT, BITS, DTYPE)
        if PRESCALE:
            p = inputs_of_words(prescale, word, here, LAYOUT, BITS, DTYPE)
        for odd in tl.static_range(outputs):
            scales = group * group_stride + (line * outputs + odd) * out_stride
            s = spread(tl.load(scale + scales, mask=known, other=0.0), WORDS).to(tl.float32)
            z = spread(tl.load(zero + scales, mask=known, other=0.0), WORDS).to(tl.float32) if ZERO else s
            total = odds if odd == 1 else even
            for place in tl.static_range(16 // BITS // outputs):
                w_low, w_high = two(bits, s, z, place * outputs + odd, ZERO, TWICE, LAYOUT, BITS, DTYPE, SUMS)
                low, high = read_by(read, place, LAYOUT, BITS)
                if PRESCALE:
                    p_low, p_high = read_by(p, place, LAYOUT, BITS)
                    low, high = rounded(low * p_low, DTYPE), rounded(high * p_high, DTYPE)
                total += w_low * low
                total += w_high * high
            if odd == 1:
                odds = total
            else:
                even = total
    if EARLY and LAYOUT != SM90:
        tl.extra.cuda.gdc_launch_dependents()
    line = (tl.program_id(0) * LINES + tl.arange(0, LINES)) * outputs
    for odd in tl.static_range(outputs):
        total = tl.sum(odds if odd == 1 else even, 1)
        if BIAS:
            total += tl.load(bias + line + odd, mask=line < out_features, other=0.0).to(tl.float32)
        tl.store(y + line + odd, rounded(total, DTYPE).to(DTYPE), mask=line < out_features)
