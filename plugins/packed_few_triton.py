"""x times a packed weight for few tokens on tensor cores, in Triton.

Weights are the left operand: a program multiplies a few lines, whose input its warps share, a part each and all parts
side by side; tiles are copied ahead of the products. Warps' sums are added in one order at the end. Dequantized weights
and prescaled inputs are equal to the bit; sums differ from the reference's by their order, which depends on shapes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arithmetic_triton import INTERPRETS, OPTIONS, rounded
from .kernels import cdiv, generation, power_of_two, starts_early
from .launches import Launches
from .packed_fields_triton import arranges, field_at, instructions, weights
from .packed_weight_triton import LAYOUTS, ROWS, group_of

# Programs that keep a GPU busy.
PROGRAMS = 256
# Tiles in flight, and the one that is read, by what fits into the memory that programs share.
TILES = {80: 3, 86: 2, 87: 3, 89: 2, 120: 2, 121: 2}
# Fields of a program that puts inputs into the order of weights.
BLOCK = 256


def schedule(tokens: int, lines: int, outputs: int, sm: int) -> dict[str, int]:
    """Lines and tokens of a program's tile; parts of the input for its warps, and for programs; tiles in flight.

    Args:
        lines: of the weight, each of so many ``outputs``.
    """
    tile = max(8, power_of_two(tokens))
    if tokens <= 16:
        least = 32 // outputs
        if lines <= least * PROGRAMS:
            shape = {"LINES": least, "PARTS": 4, "num_warps": 4, "num_stages": 3}
        elif tokens <= 8:
            shape = {"LINES": 32, "PARTS": 2, "num_warps": 2, "num_stages": 3}
        else:
            shape = {"LINES": 32, "PARTS": 4, "num_warps": 4, "num_stages": 2}
        split = 1
    else:
        height = 64 if tokens <= 32 or outputs == 2 else 128
        most = PROGRAMS // cdiv(lines, height) // (1 if tokens <= 32 else 2)
        split = 1 << min(max(most, 1).bit_length() - 1, 3)
        stages = 4 if split == 4 and height == 64 else 3
        shape = {"LINES": height, "PARTS": 1, "num_warps": height // 16, "num_stages": stages}
    shape["num_stages"] = min(shape["num_stages"], TILES.get(sm, 4))
    return {"TOKENS": tile, "SPLIT": split, **shape}


def product(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    prescale: torch.Tensor | None,
    zero: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    bits: int,
    layout: str,
    twice: bool,
    once: bool,
) -> torch.Tensor:
    """y = (x p) @ (weight * scale + zero).T + bias, as ``packed_product_triton.product``.

    Args:
        twice: whether the product of a weight and its scale is rounded before the zero is added.
        once: whether one rounding of their sum is all that is needed.
    """
    tokens, channels = x.shape
    out, outputs = scale.shape[1], 2 if layout == "rows" else 1
    lines, places = out // outputs, 16 // bits // outputs
    group, step = group_of(scale, channels)
    early = starts_early(x)
    how = {"LAYOUT": LAYOUTS[layout], "BITS": bits, "PLACES": places, "STEP": group // places}
    arranged, y = torch.empty_like(x), x.new_empty(tokens, out)
    arranges[(cdiv(channels // places, BLOCK), tokens)](
        x.contiguous(),
        x if prescale is None else prescale,
        arranged,
        tokens,
        channels,
        PRESCALE=prescale is not None,
        **how,
        **early,
        **OPTIONS,
        BLOCK=BLOCK,
    )
    shape = schedule(tokens, lines, outputs, generation(x))
    split = shape["SPLIT"]
    sums = y if split == 1 else x.new_empty(split, tokens, out, dtype=torch.float32)
    together = 1 if channels // group % 2 else 2
    zeros = scale if zero is None else zero
    paired = together == 2 and step == 1 and in_pairs(scale) and in_pairs(zeros)
    if paired:
        scale, zeros = scale.t().view(torch.int32).t(), zeros.t().view(torch.int32).t()
    lower, upper = instructions(x.dtype, bits, layout, zero=zero is not None, twice=twice, once=once)
    launches[(cdiv(lines, shape["LINES"]), split)](
        arranged,
        packed.reshape(-1).view(torch.int16),
        scale,
        zeros,
        x if bias is None else bias,
        sums,
        tokens,
        lines,
        channels // places,
        step * scale.stride(0),
        scale.stride(1),
        LOWER=lower,
        UPPER=upper,
        ZERO=zero is not None,
        TWICE=twice,
        BIAS=bias is not None and split == 1,
        **how,
        **early,
        **OPTIONS,
        GROUPS=together,
        PAIRED=paired,
        WHOLE=step == 0,
        EVEN=channels % (group * together * shape["PARTS"] * split) == 0,
        **shape,
    )
    if split > 1:
        added[(cdiv(tokens * out, BLOCK),)](
            sums,
            x if bias is None else bias,
            y,
            tokens * out,
            out,
            BIAS=bias is not None,
            SPLIT=split,
            **early,
            **OPTIONS,
            BLOCK=BLOCK,
        )
    return y


def in_pairs(scale: torch.Tensor) -> bool:
    """Whether an output's scales lie one after the other, two in an int32."""
    return scale.stride(0) == 1 and scale.stride(1) % 2 == 0 and scale.storage_offset() % 2 == 0


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def few_tokens(  # type: ignore[no-untyped-def]
    x,
    packed,
    scale,
    zero,
    bias,
    y,
    tokens,
    lines,
    fields,
    group_stride,
    out_stride,
    LOWER: tl.constexpr,
    UPPER: tl.constexpr,
    ZERO: tl.constexpr,
    TWICE: tl.constexpr,
    BIAS: tl.constexpr,
    LAYOUT: tl.constexpr,
    BITS: tl.constexpr,
    PLACES: tl.constexpr,
    EARLY: tl.constexpr,
    STEP: tl.constexpr,
    GROUPS: tl.constexpr,
    PAIRED: tl.constexpr,
    WHOLE: tl.constexpr,
    EVEN: tl.constexpr,
    SPLIT: tl.constexpr,
    LINES: tl.constexpr,
    TOKENS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """All of the input for a tile of lines: [parts, lines, fields] times [parts, fields, tokens]."""
    outputs: tl.constexpr = 2 if LAYOUT == ROWS else 1
    DTYPE: tl.constexpr = x.dtype.element_ty
    first = tl.program_id(0) * LINES
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if PARTS == 1:
        part = tl.full((1, 1), 0, tl.int32)
        line, token = (first + tl.arange(0, LINES))[:, None], tl.arange(0, TOKENS)[:, None]
        inner = tl.arange(0, STEP)[None, :]
        even = tl.zeros((LINES, TOKENS), tl.float32)
    else:
        part = tl.arange(0, PARTS)[:, None, None]
        line, token = (first + tl.arange(0, LINES))[None, :, None], tl.arange(0, TOKENS)[None, :, None]
        inner = tl.arange(0, STEP)[None, None, :]
        even = tl.zeros((PARTS, LINES, TOKENS), tl.float32)
    odds = even
    line = line % lines
    groups = fields // STEP
    scale += line * outputs * out_stride
    zero += line * outputs * out_stride
    if WHOLE:
        s, s_odd = scales(scale, 0, 1, 0, out_stride, outputs, False, True)
        z, z_odd = s, s_odd
        if ZERO:
            z, z_odd = scales(zero, 0, 1, 0, out_stride, outputs, False, True)
    chunk = tl.cdiv(groups, SPLIT * PARTS * GROUPS) * PARTS
    for start in range(0, chunk, PARTS):
        some = tl.program_id(1) * chunk + start + part
        for half in tl.static_range(GROUPS):
            group = some * GROUPS + half
            if not WHOLE and (half == 0 or not PAIRED):
                read = some if PAIRED else group
                known = groups // GROUPS if PAIRED else groups
                s, s_odd = scales(scale, read, known, group_stride, out_stride, outputs, PAIRED, EVEN)
                z, z_odd = s, s_odd
                if ZERO:
                    z, z_odd = scales(zero, read, known, group_stride, out_stride, outputs, PAIRED, EVEN)
            places = packed + field_at(line, group * STEP + inner, fields, LAYOUT, BITS)
            there = token < tokens
            if EVEN:
                bits = tl.load(places)
            else:
                bits = tl.load(places, mask=group < groups, other=0)
                there &= group < groups
            made = weights(
                bits,
                s.broadcast_to(bits.shape),
                s_odd.broadcast_to(bits.shape),
                z.broadcast_to(bits.shape),
                z_odd.broadcast_to(bits.shape),
                half if PAIRED else 0,
                UPPER if PAIRED and half == 1 else LOWER,
                ZERO,
                TWICE,
                LAYOUT,
                BITS,
                DTYPE,
            )
            for place in tl.static_range(PLACES):
                row = (group * PLACES + place) * tokens + token
                inputs = tl.load(x + row * STEP + inner, mask=there, other=0.0)
                inputs = tl.trans(inputs) if PARTS == 1 else tl.permute(inputs, (0, 2, 1))
                even = multiplied(made[place * outputs], inputs, even)
                if outputs == 2:
                    odds = multiplied(made[place * outputs + 1], inputs, odds)
    out = (first + tl.arange(0, LINES))[:, None]
    token = tl.arange(0, TOKENS)[None, :]
    for odd in tl.static_range(outputs):
        total = odds if odd == 1 else even
        total = total if PARTS == 1 else tl.sum(total, 0)
        column = out * outputs + odd
        if BIAS:
            total += tl.load(bias + column, mask=out < lines, other=0.0).to(tl.float32)
        places = (tl.program_id(1) * tokens + token) * (lines * outputs) + column
        if SPLIT == 1:
            total = rounded(total, DTYPE).to(DTYPE)
        tl.store(y + places, total, mask=(token < tokens) & (out < lines))


launches = Launches(few_tokens)


@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def added(  # type: ignore[no-untyped-def]
    sums,
    bias,
    y,
    size,
    out,
    BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    EARLY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of parts of the input, [split, size], added in their order; and the bias."""
    DTYPE: tl.constexpr = y.dtype.element_ty
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    total = tl.load(sums + place, mask=place < size)
    for part in tl.static_range(1, SPLIT):
        total += tl.load(sums + part * size + place, mask=place < size)
    if BIAS:
        total += tl.load(bias + place % out, mask=place < size).to(tl.float32)
    tl.store(y + place, rounded(total, DTYPE).to(DTYPE), mask=place < size)


@triton.jit
def multiplied(weight, inputs, total):  # type: ignore[no-untyped-def]
    """total + weight @ inputs; Triton's interpreter does not multiply bfloat16."""
    if INTERPRETS:
        return tl.dot(weight.to(tl.float32), inputs.to(tl.float32), total)
    return tl.dot(weight, inputs, total)


@triton.jit  # type: ignore[untyped-decorator]
def scales(  # type: ignore[no-untyped-def]
    scale, group, groups, group_stride, out_stride, outputs: tl.constexpr, PAIRED: tl.constexpr, ALL: tl.constexpr
):
    """The scales of a line's output, or of both its outputs, for one group or two, as the halves of an int32."""
    places = scale + group * group_stride
    if ALL:
        even = tl.load(places)
        odd = tl.load(places + out_stride) if outputs == 2 else even
    else:
        even = tl.load(places, mask=group < groups, other=0)
        odd = tl.load(places + out_stride, mask=group < groups, other=0) if outputs == 2 else even
    if not PAIRED:
        even, odd = even.to(tl.int16, bitcast=True).to(tl.int32), odd.to(tl.int16, bitcast=True).to(tl.int32)
    return even, odd
