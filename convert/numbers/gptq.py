"""GPTQ: round a weight one input channel at a time, and let the channels still to come make up for the error.

The output error of a rounded weight is trace(dW H dW') with H = X'X, the Gram matrix of the layer's inputs. With
channel j fixed at q_j, the least error that the remaining channels can still reach is had by moving them

    w_k <- w_k - (w_j - q_j) / U_jj * U_jk    for all k > j,    U'U = H^-1, U upper triangular

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", equations
2 and 3 and algorithm 1. U is found without inverting H: if H = R R' with R upper triangular (a Cholesky
factorization from the last channel to the first), then U = R^-1.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import InputError
from .finite import finite
from .quantized import QuantizedLinear
from .rounding import Grid

# Channels whose errors are gathered before the rest of the matrix is moved.
BLOCK = 128
# The widest input whose factorization is done in float64; wider ones would take too long.
DOUBLE_UP_TO = 4096
# A triangular matrix up to this size is inverted in one piece.
LEAST_HALVED = 256
# Rounding never takes a Gram matrix further from positive definite than this share of its mean diagonal.
MOST_DAMPING = 100.0

RoundChannels = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Grid], torch.Tensor]


def gptq(
    weight: torch.Tensor, gram: torch.Tensor, grid: Grid, act_order: bool = False, damping: float = 0.01
) -> QuantizedLinear:
    """The integers of least output error that GPTQ finds.

    Args:
        weight: float32 [out, in].
        gram: float32 [in, in], X'X of the inputs, up to a positive factor.
        grid: what each group may take, fixed beforehand. (The paper fits a group's scale when it reaches it, which
            changed held-out errors of SmolLM2's linears by 2 % either way.)
        act_order: take the channels with the largest H_jj first; the ones that matter least absorb the errors.
            Groups stay where they are, so nothing is reordered at run time.
        damping: share of the mean of H_jj that is added to all of them.

    Returns:
        the rounded weight, on ``grid``; the same for the same input.
    """
    return round_by(Compensation.of(gram, act_order, damping), weight, grid)


@dataclass(frozen=True)
class Compensation:
    """How the channels of an input make up for each other's errors, whatever weight reads them.

    Attributes:
        order: in which channels are rounded, int64 [in].
        u: U in that order, rows divided by its diagonal, float32 [in, in].
    """

    order: torch.Tensor
    u: torch.Tensor

    @staticmethod
    def of(gram: torch.Tensor, act_order: bool = False, damping: float = 0.01) -> Compensation:
        """What ``gptq`` finds in a Gram matrix."""
        order = torch.arange(len(gram), device=gram.device)
        if act_order:
            order = gram.diagonal().argsort(descending=True, stable=True)
        u = inverse_factor(gram, order, damping)
        return Compensation(order, (u / u.diagonal()[:, None]).contiguous())


def round_by(by: Compensation, weight: torch.Tensor, grid: Grid) -> QuantizedLinear:
    """``gptq`` of one of the weights that read an input."""
    order, u = by.order, by.u
    columns, groups = weight.shape[1], grid.scale.shape[1]
    # Transposed, so that a channel is a contiguous row. Rows that are done hold their integers.
    w, scale = weight.t()[order], grid.scale.t().contiguous()
    offset = torch.zeros_like(scale) if grid.offset is None else grid.offset.t().contiguous()
    group_of = order // (columns // groups)
    round_channels = compiled() if weight.is_cuda else one_by_one
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        group = group_of[start:end]
        errors = round_channels(w[start:end], u[start:end, start:end], scale[group], offset[group], grid)
        w[end:].addmm_(u[start:end, end:].t(), errors, alpha=-1)
    integers = torch.empty_like(w)
    integers[order] = w
    return grid.take(integers.t().contiguous())


def one_by_one(w: torch.Tensor, u: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Round neighbouring channels one after the other, half to even, each moving those behind it.

    Args:
        w: float32 [channels, out]; becomes their integers.
        u: their part of U, rows divided by its diagonal, float32 [channels, channels].
        scale, offset: of each channel's group, float32 [channels, out].

    Returns:
        w_j - q_j of each channel when it was reached, float32 [channels, out].
    """
    errors = torch.empty_like(w)
    rows = zip(w.unbind(), scale.unbind(), offset.unbind(), errors.unbind(), strict=True)
    for j, (row, step, start, error) in enumerate(rows):
        from_offset = row - start
        k = (from_offset / step).round_().clamp_(grid.low, grid.high)
        torch.addcmul(from_offset, k, step, value=-1, out=error)
        w[j + 1 :].addr_(u[j, j + 1 :], error, alpha=-1)
        row.copy_(k)
    return errors


def compiled() -> RoundChannels:
    """``one_by_one`` as one kernel; as it is where Triton, or the C compiler that it needs, is missing."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return one_by_one
    try:
        from . import gptq_triton
    except ImportError:
        return one_by_one
    return gptq_triton.one_by_one


def inverse_factor(gram: torch.Tensor, order: torch.Tensor, damping: float) -> torch.Tensor:
    """U of U'U = (H + d I)^-1, upper triangular, float32 [in, in], its channels in the given order.

    A channel that was never active is coupled to no other, hence rounded to nearest. Damping grows tenfold for
    as long as rounding keeps H from being positive definite.
    """
    if not finite(gram):
        raise InputError(
            "the Gram matrix of calibration inputs holds NaN or infinity; is the model's dtype too narrow?"
        )
    n = gram.shape[0]
    # Backwards, the upper triangular R of H is lower triangular.
    backwards = order.flip(0)
    h = gram[backwards][:, backwards].to(torch.float64 if n <= DOUBLE_UP_TO else torch.float32)
    diagonal = h.diagonal()
    mean = diagonal.mean() if diagonal.any() else torch.ones_like(diagonal[0])
    diagonal[diagonal == 0] = mean
    while True:
        diagonal += damping * mean
        factor, failed = torch.linalg.cholesky_ex(h)
        if not failed:
            break
        damping = max(damping * 10, 1e-6)
        if not damping <= MOST_DAMPING:
            raise InputError("a Gram matrix of calibration inputs is not positive semidefinite; calibrate again")
    inverse = inverse_of_lower(factor)
    if gram.is_cuda and not finite(inverse):
        # Seen with torch 2.11 on an H100 for a matrix that the CPU factors without trouble.
        return inverse_factor(gram.cpu(), order.cpu(), damping).to(gram.device)
    return inverse.flip(0, 1).float()


def inverse_of_lower(lower: torch.Tensor) -> torch.Tensor:
    """The inverse of a lower triangular matrix [n, n], by halves: most of it is matrix products.

    [A 0; B C]^-1 = [A^-1 0; -C^-1 B A^-1  C^-1]
    """
    n = len(lower)
    if n <= LEAST_HALVED:
        identity = torch.eye(n, dtype=lower.dtype, device=lower.device)
        whole: torch.Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
        return whole
    half = n // 2
    a, c = inverse_of_lower(lower[:half, :half]), inverse_of_lower(lower[half:, half:])
    inverse = torch.zeros_like(lower)
    inverse[:half, :half], inverse[half:, half:] = a, c
    torch.mm(c @ lower[half:, :half], a, out=inverse[half:, :half]).neg_()
    return inverse


def output_error(change: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """trace(dW H dW'), the squared error of a layer's output whose weight is off by dW. change: [out, in]."""
    return ((change @ gram) * change).sum()
