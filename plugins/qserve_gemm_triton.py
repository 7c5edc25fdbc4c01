"""QServeGemm on a GPU: tensor cores multiply INT8 by 4-bit weights that are read as the checkpoint packs them.

A word holds four neighbouring channels of an output r and of r + 16: a program takes 32 outputs, and a group of 128
channels at a time. Integers are equal, and outputs to the bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arithmetic_triton import OPTIONS, fma
from .kernels import cdiv, power_of_two

# Tokens of one program at most.
MOST_TOKENS = 64
# Outputs of a fragment's half; words of a group of 128 channels, and of a step per channel.
HALF: tl.constexpr = tl.constexpr(16)
STEP: tl.constexpr = tl.constexpr(32)


def run_per_group(
    x: torch.Tensor,
    act_scales: torch.Tensor,
    packed: torch.Tensor,
    s1_scales: torch.Tensor,
    s2_scales: torch.Tensor,
    s2_zeros: torch.Tensor,
) -> torch.Tensor:
    """As ``reference_packed_per_group``: y = (x @ (weight * s2 + z2).T) * s1 * s_x, float16 [tokens, out]."""
    return product(x, act_scales, packed, s1_scales, (s2_scales, s2_zeros), None)


def run_per_channel(
    x: torch.Tensor,
    act_scales: torch.Tensor,
    act_sums: torch.Tensor,
    packed: torch.Tensor,
    s1_scales: torch.Tensor,
    s1_szeros: torch.Tensor,
) -> torch.Tensor:
    """As ``reference_packed_per_channel``: y = (x @ weight.T) * s1 * s_x - szeros * sum(x), float16 [tokens, out]."""
    return product(x, act_scales, packed, s1_scales, None, (s1_szeros, act_sums))


def product(
    x: torch.Tensor,
    act_scales: torch.Tensor,
    packed: torch.Tensor,
    s1_scales: torch.Tensor,
    second: tuple[torch.Tensor, torch.Tensor] | None,
    zeros: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Per group with what is ``second``, per channel with zeros and sums."""
    (tokens, channels), out = x.shape, packed.shape[0]
    block = min(max(16, power_of_two(tokens)), MOST_TOKENS)
    y = x.new_empty((tokens, out), dtype=torch.float16)
    grid = (out // (2 * HALF.value), cdiv(tokens, block))
    s2, z2 = (packed, packed) if second is None else second
    szeros, sums = (s1_scales, act_scales) if zeros is None else zeros
    gemm[grid](
        x.contiguous().view(torch.int32),
        act_scales,
        sums,
        packed.view(torch.int32),
        s1_scales,
        szeros,
        s2,
        z2,
        y,
        tokens,
        out,
        CHANNELS=channels,
        PER_GROUP=second is not None,
        TOKENS=block,
        num_warps=4,
        num_stages=4,
        **OPTIONS,
    )
    return y


@triton.jit
def words_at(packed, block, line, word, channels):  # type: ignore[no-untyped-def]
    """Words of 32 outputs' fragments: of line r, for outputs r and r + 16, and four channels from 4 * word on."""
    first = block.to(tl.int64) * channels * 4
    tile = word // 8 * 128 + word % 4 * 4 + word // 4 % 2 * 2
    return tl.load(packed + first + tile + (line % 8 * 16 + line // 8))


@triton.jit  # type: ignore[untyped-decorator]
def byte(words, s2, z2, place: tl.constexpr, upper: tl.constexpr, PER_GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """A word's 4-bit value of a channel, unfolded where there are groups: int32, its last eight bits count."""
    value = (words >> (8 * place + 4 * upper)) & 15
    return value * s2 + z2 if PER_GROUP else value


@triton.jit  # type: ignore[untyped-decorator]
def second_level(values, group, block, line, upper: tl.constexpr, out):  # type: ignore[no-untyped-def]
    """Scales or zeros of lines' outputs in a group, int32: those of 32 lie as 0 8 16 24 1 9 ..."""
    output = line + 16 * upper
    return tl.load(values + group * out + block * 32 + output % 8 * 4 + output // 8).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def gemm(  # type: ignore[no-untyped-def]
    x,
    act_scales,
    act_sums,
    packed,
    s1_scales,
    s1_szeros,
    s2_scales,
    s2_zeros,
    y,
    tokens,
    out,
    CHANNELS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """32 outputs of some tokens."""
    block = tl.program_id(0)
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS))[:, None]
    line = tl.arange(0, HALF)[None, :]
    lower = tl.zeros((TOKENS, HALF), tl.int32)
    upper = lower
    for start in range(0, CHANNELS // 4, STEP):
        word = start + tl.arange(0, STEP)
        words = words_at(packed, block, line, word[:, None], CHANNELS)
        s_lower, s_upper, z_lower, z_upper = 1, 1, 0, 0
        if PER_GROUP:
            s_lower = second_level(s2_scales, start // STEP, block, line, 0, out)
            s_upper = second_level(s2_scales, start // STEP, block, line, 1, out)
            z_lower = second_level(s2_zeros, start // STEP, block, line, 0, out)
            z_upper = second_level(s2_zeros, start // STEP, block, line, 1, out)
        fours = tl.load(x + token.to(tl.int64) * (CHANNELS // 4) + word[None, :], mask=token < tokens, other=0)
        for place in tl.static_range(4):
            read = (fours >> (8 * place)).to(tl.int8)
            low = byte(words, s_lower, z_lower, place, 0, PER_GROUP).to(tl.int8)
            high = byte(words, s_upper, z_upper, place, 1, PER_GROUP).to(tl.int8)
            lower = tl.dot(read, low, lower, out_dtype=tl.int32)
            upper = tl.dot(read, high, upper, out_dtype=tl.int32)
    s_x = tl.load(act_scales + token, mask=token < tokens, other=0.0).to(tl.float32)
    for half in tl.static_range(2):
        output = block * 32 + line + 16 * half
        total = (upper if half == 1 else lower).to(tl.float32)
        s1 = tl.load(s1_scales + output).to(tl.float32)
        if PER_GROUP:
            result = total * (s1 * s_x)
        else:
            sums = tl.load(act_sums + token, mask=token < tokens, other=0.0).to(tl.float32)
            result = fma(total * s1, s_x, -tl.load(s1_szeros + output).to(tl.float32) * sums)
        tl.store(y + token.to(tl.int64) * out + output, result.to(tl.float16), mask=token < tokens)
