"""y = (x @ weight.T) * scales, INT8 or FP8: the kernels of SmoothQuantGemm, Fp8RowwiseGemm and FP8 per tensor.

Tensor cores multiply tiles that are copied ahead of them, on Hopper by its copy engine; scales and bias are applied to
what they leave in registers. Few tokens are a matter of reading the weight: small tiles, many of them, launched before
the kernel that makes the input has ended; one token needs no tensor cores. INT8: equal to the reference to the bit.
FP8: sums of 128 products are added in float32, within 2e-3 of the sum of the products' magnitudes (Hopper's tensor
cores keep 13 bits of a sum).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import fp8_rowwise_gemm
from .arithmetic_triton import OPTIONS
from .kernels import HOPPER, INTERPRETED, cdiv, generation, starts_early
from .scaled_gemm_schedules import bucket, fitting, fitting_few, grid, schedules, shape_tiles
from .smooth_quant_gemm import MOST_FEW_TOKENS
from .trials import tuned

# The GPU generation that first multiplies e4m3.
FIRST_FP8 = 89
# So many tokens are a tile of their own.
FEW = 16


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
    most_few: int = MOST_FEW_TOKENS,
) -> torch.Tensor:
    """``smooth_quant_gemm.reference`` or, of e4m3, ``fp8_rowwise_gemm.reference`` on a GPU.

    Args:
        x: int8 or e4m3 [tokens, in].
        weight: of the same dtype, [out, in].
        scale_a: float32 [tokens, 1] or of one element.
        scale_b: float32 of ``out`` elements or of one.
        dtype: of what is returned.
        bias: [out] in that dtype, added to the rounded product.
        most_few: so many tokens are scaled as few of them; 0 for none.

    Returns:
        dtype [tokens, out].
    """
    sm = generation(x)
    if x.dtype != torch.int8 and 0 < sm < FIRST_FP8:
        return fp8_rowwise_gemm.reference(x, weight, scale_a, scale_b, dtype)
    tokens, channels = x.shape
    y = torch.empty((tokens, len(weight)), dtype=dtype, device=x.device)
    if not tokens:
        return y
    x, weight = x.contiguous(), weight.contiguous()
    added = y if bias is None else bias
    how = {
        "PER_TOKEN": scale_a.numel() > 1 or tokens == 1,
        "PER_CHANNEL": scale_b.numel() > 1 or len(weight) == 1,
        "BIAS": bias is not None,
        "FEW": tokens <= most_few,
        "SUMS": tl.int32 if x.dtype == torch.int8 else tl.float32,
        **OPTIONS,
    }
    out, numbers = (scale_a, scale_b, added, y), (tokens, len(weight), channels, bucket(tokens))
    kind = (*numbers[1:], x.dtype, dtype, *how.values())

    def across(meta: dict[str, int]) -> tuple[int]:
        return (cdiv(len(weight), meta["BN"]),)

    copies = INTERPRETED or sm >= HOPPER
    early = starts_early(x)
    if tokens == 1 and x.dtype == torch.int8:
        of_one.launch(kind, across, x, weight, *out, *numbers[1:3], **how, **early)
    elif tokens <= FEW:
        of_few.launch(kind, across, x, weight, *out, *numbers[:3], **how, **early, EVEN=channels % 512 == 0)
    elif copies and channels % 16 == 0:
        tiles = TensorDescriptor.from_tensor(x, [1, 16]), TensorDescriptor.from_tensor(weight, [1, 16])
        copied.launch(kind, grid(tokens, len(weight)), *tiles, *out, *numbers, **how)
    else:
        loaded.launch(kind, grid(tokens, len(weight)), x, weight, *out, *numbers, **how, EVEN=channels % 128 == 0)
    return y


MANY = ["out", "channels", "BUCKET"]


@triton.jit  # type: ignore[untyped-decorator]
def scaled(  # type: ignore[no-untyped-def]
    sums,
    rows,
    columns,
    scale_a,
    scale_b,
    bias,
    y,
    tokens,
    out,
    PER_TOKEN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    BIAS: tl.constexpr,
    FEW: tl.constexpr,
):
    """Scale what a tile's sums are, in the order of the reference, and store them."""
    by_row, by_column = rows < tokens, columns < out
    a = tl.load(scale_a + (rows if PER_TOKEN else rows * 0), mask=by_row, other=0.0)[:, None]
    b = tl.load(scale_b + (columns if PER_CHANNEL else columns * 0), mask=by_column, other=0.0)[None, :]
    sums = sums.to(tl.float32)
    made = (sums * b * a if FEW else sums * (a * b)).to(y.dtype.element_ty)
    if BIAS:
        added = tl.load(bias + columns, mask=by_column, other=0.0)[None, :]
        made = (made.to(tl.float32) + added.to(tl.float32)).to(y.dtype.element_ty)
    places = y + rows.to(tl.int64)[:, None] * out + columns[None, :]
    tl.store(places, made, mask=by_row[:, None] & by_column[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def tile_of(program, tokens, out, BM: tl.constexpr, BN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row and column of a program's tile: eight rows of tiles share the columns that are in the cache."""
    down, across = tl.cdiv(tokens, BM), tl.cdiv(out, BN)
    first = program // (8 * across) * 8
    height = min(down - first, 8)
    return first + program % (8 * across) % height, program % (8 * across) // height


@tuned(
    [triton.Config({"BN": n, "BK": k}, num_warps=4) for n, k in ((4, 1024), (8, 1024), (2, 2048), (8, 512))],
    ["out", "channels"],
)
@triton.jit  # type: ignore[untyped-decorator]
def of_one(  # type: ignore[no-untyped-def]
    x,
    weight,
    scale_a,
    scale_b,
    bias,
    y,
    out,
    channels,
    PER_TOKEN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    BIAS: tl.constexpr,
    FEW: tl.constexpr,
    SUMS: tl.constexpr,
    EARLY: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """One token, on CUDA cores: every lane sums products of its own channels."""
    first = tl.program_id(0) * BN
    columns, inner = first + tl.arange(0, BN), tl.arange(0, BK)
    places = weight + (columns % out).to(tl.int64)[:, None] * channels + inner[None, :]
    held = tl.load(places, mask=inner[None, :] < channels, other=0, eviction_policy="evict_first")
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.load(x + inner, mask=inner < channels, other=0)
    sums = held.to(tl.int32) * token.to(tl.int32)[None, :]
    for k in range(BK, channels, BK):
        held = tl.load(places + k, mask=inner[None, :] < channels - k, other=0, eviction_policy="evict_first")
        token = tl.load(x + k + inner, mask=inner < channels - k, other=0)
        sums += held.to(tl.int32) * token.to(tl.int32)[None, :]
    total = tl.sum(sums, 1)[None, :]
    scaled(total, tl.arange(0, 1), columns, scale_a, scale_b, bias, y, 1, out, PER_TOKEN, PER_CHANNEL, BIAS, FEW)


@tuned(
    schedules((16, 32, 512, 4, 6), (16, 16, 512, 2, 4), (16, 64, 256, 4, 6), (16, 32, 256, 4, 4)),
    ["out", "channels"],
    fitting_few,
)
@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def of_few(  # type: ignore[no-untyped-def]
    x,
    weight,
    scale_a,
    scale_b,
    bias,
    y,
    tokens,
    out,
    channels,
    PER_TOKEN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    BIAS: tl.constexpr,
    FEW: tl.constexpr,
    SUMS: tl.constexpr,
    EARLY: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """All tokens in one tile; programs share the outputs."""
    first = tl.program_id(0) * BN
    rows, columns, inner = tl.arange(0, BM), first + tl.arange(0, BN), tl.arange(0, BK)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x += (rows % tokens)[:, None] * channels + inner[None, :]
    weight += (columns % out).to(tl.int64)[None, :] * channels + inner[:, None]
    sums = tl.zeros((BM, BN), SUMS)
    for k in range(0, channels, BK):
        if EVEN:
            a, b = tl.load(x), tl.load(weight)
        else:
            a = tl.load(x, mask=inner[None, :] < channels - k, other=0.0)
            b = tl.load(weight, mask=inner[:, None] < channels - k, other=0.0)
        sums = tl.dot(a, b, sums, out_dtype=SUMS)
        x += BK
        weight += BK
    scaled(sums, rows, columns, scale_a, scale_b, bias, y, tokens, out, PER_TOKEN, PER_CHANNEL, BIAS, FEW)


@tuned(
    schedules(
        (128, 256, 128, 8, 4),
        (256, 128, 128, 8, 4),
        (128, 128, 128, 4, 5),
        (64, 128, 128, 4, 5),
        (64, 64, 256, 4, 5),
        (64, 32, 256, 4, 5),
        hook=shape_tiles,
    ),
    MANY,
    fitting,
)
@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def copied(  # type: ignore[no-untyped-def]
    x,
    weight,
    scale_a,
    scale_b,
    bias,
    y,
    tokens,
    out,
    channels,
    BUCKET,
    PER_TOKEN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    BIAS: tl.constexpr,
    FEW: tl.constexpr,
    SUMS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Many tokens on Hopper: x and weight are descriptors, whose tiles the copy engine brings."""
    down, across = tile_of(tl.program_id(0), tokens, out, BM, BN)
    sums = tl.zeros((BM, BN), SUMS)
    for k in range(0, channels, BK):
        a, b = x.load([down * BM, k]), weight.load([across * BN, k])
        sums = tl.dot(a, b.T, sums, max_num_imprecise_acc=128, out_dtype=SUMS)
    rows, columns = down * BM + tl.arange(0, BM), across * BN + tl.arange(0, BN)
    scaled(sums, rows, columns, scale_a, scale_b, bias, y, tokens, out, PER_TOKEN, PER_CHANNEL, BIAS, FEW)


@tuned(
    schedules(
        (128, 256, 128, 8, 3), (128, 128, 128, 8, 3), (128, 128, 64, 4, 4), (64, 128, 128, 4, 3), (64, 64, 128, 4, 4)
    ),
    MANY,
    fitting,
)
@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def loaded(  # type: ignore[no-untyped-def]
    x,
    weight,
    scale_a,
    scale_b,
    bias,
    y,
    tokens,
    out,
    channels,
    BUCKET,
    PER_TOKEN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    BIAS: tl.constexpr,
    FEW: tl.constexpr,
    SUMS: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Many tokens on any GPU: threads copy the tiles."""
    down, across = tile_of(tl.program_id(0), tokens, out, BM, BN)
    rows, columns, inner = down * BM + tl.arange(0, BM), across * BN + tl.arange(0, BN), tl.arange(0, BK)
    x += (rows % tokens).to(tl.int64)[:, None] * channels + inner[None, :]
    weight += (columns % out).to(tl.int64)[None, :] * channels + inner[:, None]
    sums = tl.zeros((BM, BN), SUMS)
    for k in range(0, channels, BK):
        if EVEN:
            a, b = tl.load(x), tl.load(weight)
        else:
            a = tl.load(x, mask=inner[None, :] < channels - k, other=0.0)
            b = tl.load(weight, mask=inner[:, None] < channels - k, other=0.0)
        sums = tl.dot(a, b, sums, max_num_imprecise_acc=128, out_dtype=SUMS)
        x += BK
        weight += BK
    scaled(sums, rows, columns, scale_a, scale_b, bias, y, tokens, out, PER_TOKEN, PER_CHANNEL, BIAS, FEW)
