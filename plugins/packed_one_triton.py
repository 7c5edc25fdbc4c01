"""One token times a packed weight, in Triton: a tensor core sums what every four lanes of a warp have multiplied
(``packed_lanes_triton``).

A program computes a few outputs, two at a time; its threads share their input, a few words each, which are loaded
together with the first weights' scales, on Hopper before the kernel that makes the input has ended. Dequantized weights
and prescaled inputs are equal to the bit; sums of float32 differ by their order, which depends on shapes alone.
"""

# mypy: disable-error-code="assignment, var-annotated"
# (Triton's tuples grow.)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arithmetic_triton import OPTIONS, rounded
from .kernels import cdiv, starts_early
from .launches import Launches
from .packed_lanes_triton import added, instructions, of_outputs, twice_in_one
from .packed_weight_triton import LAYOUTS, ROWS, SM80, SM90, address, halves, joined

# Outputs of a program, and its threads, each of which reads four words of every output at a time.
OUTPUTS, WARPS = 4, 4


def product(
    x: torch.Tensor,
    words: torch.Tensor,
    scale: torch.Tensor,
    prescale: torch.Tensor | None,
    zero: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    group: int,
    whole: bool,
    bits: int,
    layout: str,
    twice: bool,
    once: bool,
) -> torch.Tensor:
    """y = (x p) @ (weight * scale + zero).T + bias, as ``packed_product_triton.product``, of one token.

    Args:
        words: the packed weight, int32.
        group: channels that share a scale.
        whole: all do.
        twice, once: as for ``packed_few_triton.product``.
    """
    out, channels = scale.shape[1], x.shape[1]
    y = x.new_empty(1, out)
    made, constraints = instructions(x.dtype, bits, layout, zero is not None, twice, once)
    outputs_of_word = 2 if layout == "rows" else 1
    launches[(cdiv(out, OUTPUTS),)](
        x.contiguous().view(torch.int32),
        words,
        scale,
        scale if zero is None else zero,
        x if prescale is None else prescale.view(torch.int32),
        x if bias is None else bias,
        y,
        out,
        0 if whole else scale.stride(0),
        scale.stride(1),
        INSTRUCTIONS=made,
        CONSTRAINTS=constraints,
        ZERO=zero is not None,
        TWICE=twice,
        PRESCALE=prescale is not None,
        BIAS=bias is not None,
        LAYOUT=LAYOUTS[layout],
        BITS=bits,
        QUADS=channels * bits * outputs_of_word // 128,
        OF_GROUP=group * bits * outputs_of_word // 128,
        PAIRS=OUTPUTS // 2,
        THREADS=32 * WARPS,
        num_warps=WARPS,
        **starts_early(x),
        **OPTIONS,
    )
    return y


@triton.jit
def four_of(four):  # type: ignore[no-untyped-def]
    """[threads, 4] -> what every thread has, a tuple of four [threads]."""
    even, odd = tl.split(tl.reshape(four, (four.shape[0], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit  # type: ignore[untyped-decorator]
def read(  # type: ignore[no-untyped-def]
    packed,
    scale,
    zero,
    output,
    start,
    out_features,
    group_stride,
    out_stride,
    ZERO: tl.constexpr,
    LAYOUT: tl.constexpr,
    BITS: tl.constexpr,
    QUADS: tl.constexpr,
    OF_GROUP: tl.constexpr,
    THREADS: tl.constexpr,
):
    """Four words a thread of two outputs, from quad ``start`` on, with their scales and zeros, bits in an int32."""
    quad = start + tl.arange(0, THREADS)
    inside = (quad < QUADS) & (output < out_features)
    word = quad[:, None] * 4 + tl.arange(0, 4)[None, :]
    line = output // 2 if LAYOUT == ROWS else output
    words = (tl.load(packed + address(line, word, QUADS * 4, LAYOUT, BITS), mask=inside[:, None], other=0),)
    if LAYOUT != ROWS:
        more = packed + address(line + 1, word, QUADS * 4, LAYOUT, BITS)
        words += (tl.load(more, mask=inside[:, None], other=0),)
    places = output * out_stride + quad // OF_GROUP * group_stride
    scales = ()
    for odd in tl.static_range(2):
        scales += (twice_in_one(tl.load(scale + places + odd * out_stride, mask=inside, other=0.0)),)
        if ZERO:
            scales += (twice_in_one(tl.load(zero + places + odd * out_stride, mask=inside, other=0.0)),)
    return words, scales


@triton.jit  # type: ignore[untyped-decorator]
def inputs_of(x, start, BITS: tl.constexpr, LAYOUT: tl.constexpr, QUADS: tl.constexpr, THREADS: tl.constexpr):  # type: ignore[no-untyped-def]
    """All inputs of a thread's four words, two 16-bit floats in an int32, in the order of their channels."""
    quad = start + tl.arange(0, THREADS)
    fours: tl.constexpr = 16 // BITS // (2 if LAYOUT == ROWS else 1)
    made = ()
    for i in tl.static_range(fours):
        places = (quad[:, None] * fours + i) * 4 + tl.arange(0, 4)[None, :]
        made = made + four_of(tl.load(x + places, mask=(quad < QUADS)[:, None], other=0))
    return made


@triton.jit  # type: ignore[untyped-decorator]
def inputs_of_word(twos, word: tl.constexpr, place: tl.constexpr, LAYOUT: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The two inputs that a word's integers in the same place of its halves multiply."""
    if LAYOUT == SM80:
        return twos[4 * place + word]
    if (LAYOUT == ROWS) | (LAYOUT == SM90):
        apart: tl.constexpr = 2 if (LAYOUT == SM90) & (BITS == 4) else 1
        low, high = twos[2 * apart * word + place // 2], twos[2 * apart * word + place // 2 + apart]
        if place % 2 == 0:
            return (low & 0xFFFF) | (high << 16)
        return ((low >> 16) & 0xFFFF) | (high & -0x10000)
    return twos[8 * (place // 2) + 2 * word + place % 2]


@triton.jit  # type: ignore[untyped-decorator]
def prescaled(x, p, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Two products of 16-bit floats, each rounded once."""
    low, high = halves(x, DTYPE)
    p_low, p_high = halves(p, DTYPE)
    return joined(rounded(low * p_low, DTYPE).to(DTYPE), rounded(high * p_high, DTYPE).to(DTYPE))


@triton.jit  # type: ignore[untyped-decorator]
def side_by_side(totals, PAIRS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tuple of [threads, 2] as [threads, 2 * pairs], the first of every pair before all the second ones."""
    if len(totals) == 4:
        totals = tl.join(totals[0], totals[2]), tl.join(totals[1], totals[3])
    if len(totals) == 2:
        totals = (tl.join(totals[0], totals[1]),)
    return tl.reshape(totals[0], (totals[0].shape[0], 2 * PAIRS))


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
    group_stride,
    out_stride,
    INSTRUCTIONS: tl.constexpr,
    CONSTRAINTS: tl.constexpr,
    ZERO: tl.constexpr,
    TWICE: tl.constexpr,
    PRESCALE: tl.constexpr,
    BIAS: tl.constexpr,
    LAYOUT: tl.constexpr,
    BITS: tl.constexpr,
    QUADS: tl.constexpr,
    OF_GROUP: tl.constexpr,
    EARLY: tl.constexpr,
    PAIRS: tl.constexpr,
    THREADS: tl.constexpr,
):
    """All of the input for a few pairs of outputs."""
    DTYPE: tl.constexpr = scale.dtype.element_ty
    places: tl.constexpr = 16 // BITS // (2 if LAYOUT == ROWS else 1)
    first = tl.program_id(0) * (2 * PAIRS)
    numbers = out_features, group_stride, out_stride
    held, sums = (), ()
    for pair in tl.static_range(PAIRS):
        output = first + 2 * pair
        next_one = read(packed, scale, zero, output, 0, *numbers, ZERO, LAYOUT, BITS, QUADS, OF_GROUP, THREADS)
        held += (next_one,)
        nothing = tl.zeros((THREADS,), tl.float32)
        sums += ((nothing, nothing, nothing, nothing),)
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    for start in tl.range(0, QUADS, THREADS):
        now, summed, held, sums = held, sums, (), ()
        if QUADS > THREADS:
            for pair in tl.static_range(PAIRS):
                output, after = first + 2 * pair, start + THREADS
                next_one = read(
                    packed, scale, zero, output, after, *numbers, ZERO, LAYOUT, BITS, QUADS, OF_GROUP, THREADS
                )
                held += (next_one,)
        else:
            held = now
        twos = inputs_of(x, start, BITS, LAYOUT, QUADS, THREADS)
        if PRESCALE:
            p, given, twos = inputs_of(prescale, start, BITS, LAYOUT, QUADS, THREADS), twos, ()
            for i in tl.static_range(len(given)):
                twos += (prescaled(given[i], p[i], DTYPE),)
        for pair in tl.static_range(PAIRS):
            words, scales = now[pair]
            mine, others = four_of(words[0]), four_of(words[len(words) - 1])
            total = summed[pair]
            for i in tl.static_range(4):
                inputs = ()
                for place in tl.static_range(places):
                    inputs += (inputs_of_word(twos, i, place, LAYOUT, BITS),)
                total = added(
                    total,
                    mine[i],
                    others[i],
                    scales,
                    inputs,
                    INSTRUCTIONS,
                    CONSTRAINTS,
                    ZERO,
                    TWICE,
                    LAYOUT,
                    BITS,
                    DTYPE,
                )
            sums += (total,)
    totals = ()
    for pair in tl.static_range(PAIRS):
        totals += (of_outputs(sums[pair]),)
    column = tl.arange(0, 2 * PAIRS)
    output = first + column % PAIRS * 2 + column // PAIRS
    total = tl.sum(side_by_side(totals, PAIRS), 0)
    if BIAS:
        total += tl.load(bias + output, mask=output < out_features, other=0.0).to(tl.float32)
    tl.store(y + output, rounded(total, DTYPE).to(DTYPE), mask=output < out_features)


launches = Launches(one_token)
