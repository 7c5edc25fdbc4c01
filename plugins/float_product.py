"""x @ weight.T with a weight in floating point, for many calls: summed in float32, rounded once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from .lazy import torch

FloatProduct = Callable[["torch.Tensor"], "torch.Tensor"]
FEW_ROWS = 16


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16 (AMX, AVX512-BF16)."""
    instructions = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, instruction, lambda: False)() for instruction in instructions)


def of_few_rows(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight.T, [rows, out]; of few rows as weight @ x.T, which a CPU's libraries multiply several times faster."""
    rows = len(x)
    if x.is_cuda or rows > FEW_ROWS:
        return x @ weight.t()
    wide = x if rows > 1 else x.repeat(2, 1)  # one column would be a product of one thread
    return torch.mm(weight, wide.t())[:, :rows].t().contiguous()


@cache
def sums_wide() -> bool:
    """Whether this PyTorch gives float32 for a product of narrower matrices on a GPU."""
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 8)


def summed_wide(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight.T of one dtype on a GPU, in float32, whatever they are held in."""
    if x.dtype == torch.float32:
        return x @ weight.t()
    return torch.mm(x, weight.t(), out_dtype=torch.float32)


def prepare(weight: torch.Tensor, bias: torch.Tensor | None = None) -> FloatProduct:
    """What makes x @ weight.T + bias of x, [tokens, in] in the weight's dtype -> [tokens, out].

    The weight is held as it is where its products are summed in float32 that way, else in float32.

    Args:
        weight: [out, in].
        bias: [out]; it is added before the sum is rounded.
    """
    narrow = weight.is_cuda or (weight.dtype == torch.bfloat16 and multiplies_bfloat16())
    if narrow and bias is None:
        return lambda x: torch.nn.functional.linear(x, weight)
    wide, added = weight.float(), torch.zeros(()) if bias is None else bias.float()
    return lambda x: (of_few_rows(x.float(), wide) + added).to(x.dtype)
