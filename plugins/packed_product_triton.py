"""x times a packed weight for few tokens, in Triton; what both weight-only plugins' kernels share.

Up to four tokens are multiplied on CUDA cores: a program sums the whole input for a few outputs, in registers, and no
sum crosses programs. Up to ``MOST_TOKENS``, tensor cores multiply, word by word: the order of a sum is free, so that
nothing needs to be put in the order of channels. Beyond, the weight is dequantized into memory. Dequantized weights
and prescaled inputs are equal to the bit; sums of float32 differ by their order, which depends on shapes alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .packed_weight_triton import (
    INTERPRETS,
    LAYOUTS,
    ROWS,
    address,
    channel,
    dequantize,
    dequantized,
    group_of,
    halves,
    integer,
    nearest,
    unsigned,
    words_of,
)

# The bound of a sum's error, over the sum of its products' absolute values, per channel: tensor cores cut off, of 17
# addends for 16 channels, what lies beyond 24 bits of the largest.
ERROR = 2.0**-22
# Tokens that CUDA cores multiply, and those for which a weight is read as it is packed.
FEW_TOKENS, MOST_TOKENS = 4, 64
# Outputs of one program: of CUDA cores, of tensor cores.
OUTPUTS, TILE = 4, 32
# Words of every output that a program of CUDA cores reads at a time: 128 threads, 16 bytes each.
WORDS = 512


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
    words, outputs = words_of(packed), 2 if layout == "rows" else 1
    group, step = group_of(scale, channels)
    per_group = len(words) * outputs // out * group // channels
    y = x.new_empty(len(x), out)
    few = len(x) <= FEW_TOKENS
    lines = (OUTPUTS if few else TILE) // outputs
    shape = (
        {"GROUPS": WORDS // per_group, "TOKENS": triton.next_power_of_2(len(x)), "num_warps": 4}
        if few
        else {"TOKENS": max(16, triton.next_power_of_2(len(x))), "num_warps": 4}
    )
    (cuda_cores if few else tensor_cores)[(out // outputs // lines,)](
        x.contiguous().view(torch.int32),
        words,
        scale,
        scale if zero is None else zero,
        x if prescale is None else prescale.view(torch.int32),
        x if bias is None else bias,
        y,
        len(x),
        out,
        channels,
        channels // group,
        step * scale.stride(0),
        scale.stride(1),
        ZERO=zero is not None,
        TWICE=sm == 90 and x.dtype == torch.bfloat16,
        PRESCALE=prescale is not None,
        BIAS=bias is not None,
        LAYOUT=LAYOUTS[layout],
        BITS=bits,
        LINES=lines,
        WORDS=per_group,
        **shape,
    )
    return y


@triton.jit  # type: ignore[untyped-decorator]
def inputs(x, p, places, channels_read, there, read, PRESCALE: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Two neighbouring inputs, times their prescale, as float32."""
    low, high = halves(tl.load(x + places // 2, mask=there, other=0), DTYPE)
    if PRESCALE:
        p_low, p_high = halves(tl.load(p + channels_read // 2, mask=read, other=0), DTYPE)
        low, high = nearest(low * p_low, DTYPE), nearest(high * p_high, DTYPE)
    return low, high


@triton.jit  # type: ignore[untyped-decorator]
def cuda_cores(  # type: ignore[no-untyped-def]
    x,
    packed,
    scale,
    zero,
    prescale,
    bias,
    y,
    tokens,
    out_features,
    CHANNELS: tl.constexpr,
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
    GROUPS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """All of the input for a few lines: [tokens, lines, groups, words] at a time."""
    outputs: tl.constexpr = 2 if LAYOUT == ROWS else 1
    DTYPE: tl.constexpr = scale.dtype.element_ty
    token = tl.arange(0, TOKENS)[:, None, None]
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    even = tl.zeros((TOKENS, LINES, GROUPS, WORDS), tl.float32)
    odds = even
    for start in range(0, ALL_GROUPS, GROUPS):
        group = start + tl.arange(0, GROUPS)
        here = group < ALL_GROUPS
        word = group[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
        places = address(line[:, None, None], word[None, :, :], ALL_GROUPS * WORDS, LAYOUT, BITS)
        bits = tl.load(packed + places, mask=here[None, :, None], other=0)
        bits = unsigned(bits, LAYOUT, BITS)
        for pair in tl.static_range(16 // BITS // outputs):
            read = channel(word, pair, LAYOUT, BITS)
            places = token * CHANNELS + read[None, :, :]
            there = here[None, :, None] & (token < tokens)
            low, high = inputs(x, prescale, places, read[None, :, :], there, here[None, :, None], PRESCALE, DTYPE)
            for odd in tl.static_range(outputs):
                scales = group[None, :] * group_stride + (line[:, None] * outputs + odd) * out_stride
                s = tl.load(scale + scales, mask=here[None, :], other=0.0).to(tl.float32)[:, :, None]
                z = tl.load(zero + scales, mask=here[None, :], other=0.0).to(tl.float32)[:, :, None] if ZERO else s
                left = dequantized(integer(bits, pair, 0, odd, LAYOUT, BITS), s, z, ZERO, TWICE, DTYPE)
                right = dequantized(integer(bits, pair, 1, odd, LAYOUT, BITS), s, z, ZERO, TWICE, DTYPE)
                added = left[None, :, :, :] * low[:, None, :, :]
                if odd == 0:
                    even = (even + added) + right[None, :, :, :] * high[:, None, :, :]
                else:
                    odds = (odds + added) + right[None, :, :, :] * high[:, None, :, :]
    token, line = tl.arange(0, TOKENS)[:, None], line[None, :] * outputs
    for odd in tl.static_range(outputs):
        total = tl.sum(tl.sum(odds if odd == 1 else even, 3), 2)
        if BIAS:
            total += tl.load(bias + line + odd).to(tl.float32)
        tl.store(y + token * out_features + line + odd, nearest(total, DTYPE).to(DTYPE), mask=token < tokens)


@triton.jit  # type: ignore[untyped-decorator]
def tensor_cores(  # type: ignore[no-untyped-def]
    x,
    packed,
    scale,
    zero,
    prescale,
    bias,
    y,
    tokens,
    out_features,
    CHANNELS: tl.constexpr,
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
    TOKENS: tl.constexpr,
):
    """All of the input for a tile of lines, group by group: a product of matrices for every place in a word."""
    outputs: tl.constexpr = 2 if LAYOUT == ROWS else 1
    # Triton's interpreter does not multiply bfloat16.
    OPERAND: tl.constexpr = tl.float32 if INTERPRETS else scale.dtype.element_ty
    # Tensor cores multiply 16 channels at a time.
    STEP: tl.constexpr = max(WORDS, 16)
    DTYPE: tl.constexpr = scale.dtype.element_ty
    token = tl.arange(0, TOKENS)[:, None]
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    even = tl.zeros((TOKENS, LINES), tl.float32)
    odds = even
    for start in range(0, ALL_GROUPS * WORDS, STEP):
        word = start + tl.arange(0, STEP)
        here = word < ALL_GROUPS * WORDS
        group = word // WORDS if WORDS < STEP else tl.zeros_like(word) + start // WORDS
        places = address(line[None, :], word[:, None], ALL_GROUPS * WORDS, LAYOUT, BITS)
        bits = unsigned(tl.load(packed + places, mask=here[:, None], other=0), LAYOUT, BITS)
        for pair in tl.static_range(16 // BITS // outputs):
            read = channel(word, pair, LAYOUT, BITS)[None, :]
            there = here[None, :] & (token < tokens)
            low, high = inputs(x, prescale, token * CHANNELS + read, read, there, here[None, :], PRESCALE, DTYPE)
            for odd in tl.static_range(outputs):
                scales = group[:, None] * group_stride + (line[None, :] * outputs + odd) * out_stride
                s = tl.load(scale + scales, mask=here[:, None], other=0.0).to(tl.float32)
                z = tl.load(zero + scales, mask=here[:, None], other=0.0).to(tl.float32) if ZERO else s
                left = dequantized(integer(bits, pair, 0, odd, LAYOUT, BITS), s, z, ZERO, TWICE, DTYPE)
                right = dequantized(integer(bits, pair, 1, odd, LAYOUT, BITS), s, z, ZERO, TWICE, DTYPE)
                if odd == 0:
                    even = tl.dot(low.to(OPERAND), left.to(OPERAND), even)
                    even = tl.dot(high.to(OPERAND), right.to(OPERAND), even)
                else:
                    odds = tl.dot(low.to(OPERAND), left.to(OPERAND), odds)
                    odds = tl.dot(high.to(OPERAND), right.to(OPERAND), odds)
    line = line[None, :] * outputs
    for odd in tl.static_range(outputs):
        total = odds if odd == 1 else even
        if BIAS:
            total += tl.load(bias + line + odd).to(tl.float32)
        tl.store(y + token * out_features + line + odd, nearest(total, DTYPE).to(DTYPE), mask=token < tokens)
