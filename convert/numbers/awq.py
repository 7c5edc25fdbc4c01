"""AWQ: scale up the weights that meet large activations before rounding, then clip each group where that helps.

    y = x W' = (x / s) (s W)'        s_j = m_j^alpha / w_j^(1 - alpha),  m_j = mean |x_j|

normalised so that max(s) min(s) = 1. The released method has no w; with it, w_j is the mean over the rows of
|W_ij| relative to the largest weight of its group. alpha is what minimises the output error

    trace(dW G dW'),    dW = Q(W s) / s - W,    G = X'X

which the Gram matrix scores without another forward pass. Every alpha is screened first by what that error is
expected to be if rounding errors of different groups are independent,

    sum_g trace(dW_g G_gg dW_g'),    G_gg the block of G that belongs to group g's channels

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", equations 4 and 5
and section 3.2 (clipping).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from .gram import output_energy
from .rounding import Grid
from .smoothing import floored, sample_rows

ALPHA_STEPS = 20
# Rows of each weight that the alpha search scores.
SAMPLED_ROWS = 256
# Every which of these rows is enough to screen all alphas, and how many go on to be scored exactly.
SCREENED, FINALISTS = 2, 4
# A group's scale is tried at 1, 0.95, ... of what would just cover it.
CLIP_STEP, CLIP_LEAST = 0.05, 0.5
# Weights that are clipped at once: few enough for a CPU's cache, enough to fill a GPU.
CLIPPED_AT_ONCE = {"cpu": 2**19, "cuda": 2**25}


@dataclass(frozen=True)
class Scaling:
    """What was chosen for linears that read one input.

    Attributes:
        factor: s, float32 [in]; weights are multiplied by it and their input divided.
        alpha: the exponent that gave s; None for no scaling.
        error: squared output error over the squared output, on the sampled rows.
    """

    factor: torch.Tensor
    alpha: float | None
    error: float


def search(
    weights: Sequence[torch.Tensor],
    gram: torch.Tensor,
    grid_of: Callable[[torch.Tensor], Grid],
    group_size: int,
    magnitude: torch.Tensor | None = None,
    by_weight: bool = False,
) -> Scaling:
    """The scaling of least output error, for all linears that read one input (q, k and v; gate and up) together.

    Args:
        weights: float32 [out_i, in] each.
        gram: float32 [in, in], X'X of their input, up to a positive factor.
        grid_of: how a float32 [rows, in] weight will be rounded, e.g. ``partial(Grid.of, group_size=128, ...)``.
        group_size: of that grid.
        magnitude: m, mean |x| of each channel, float32 [in]; sqrt(G_jj), which is its root mean square up to
            a factor, where none was measured.
        by_weight: divide by w^(1 - alpha).
    """
    rows, times = map(torch.cat, zip(*(sample_rows(weight, SAMPLED_ROWS) for weight in weights), strict=True))
    few, stand_for, blocks = rows[::SCREENED], times[::SCREENED], diagonal_blocks(gram, group_size)
    m = floored(gram.diagonal().clamp_min(0).sqrt() if magnitude is None else magnitude)
    w = relative_magnitude(rows, times, group_size) if by_weight else None
    energy = float(times @ output_energy(rows, gram)) or 1.0

    def change(weight: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        scaled = weight * s
        return grid_of(scaled).snap(scaled).div_(s).sub_(weight)

    def expected(step: int) -> float:
        by_group = change(few, factor(m, w, step / ALPHA_STEPS)).unflatten(1, (-1, group_size)).transpose(0, 1)
        return float(stand_for @ (by_group @ blocks).mul_(by_group).sum((0, 2)))

    def tried(alpha: float | None, s: torch.Tensor) -> Scaling:
        return Scaling(s, alpha, float(times @ output_energy(change(rows, s), gram)) / energy)

    screened = sorted(range(ALPHA_STEPS + 1), key=expected)[:FINALISTS]
    finalists = [tried(step / ALPHA_STEPS, factor(m, w, step / ALPHA_STEPS)) for step in screened]
    return min([tried(None, torch.ones_like(m)), *finalists], key=lambda choice: choice.error)


def factor(magnitude: torch.Tensor, relative: torch.Tensor | None, alpha: float) -> torch.Tensor:
    """s = m^alpha (/ w^(1 - alpha)), over sqrt(max(s) min(s)); all float32 [in]."""
    s = magnitude.pow(alpha)
    if relative is not None:
        s = s / relative.pow(1 - alpha)
    return s / (s.max() * s.min()).sqrt()


def relative_magnitude(rows: torch.Tensor, times: torch.Tensor, group_size: int) -> torch.Tensor:
    """w_j: the mean of |W_ij| over the largest |W| of its row in its group; float32 [in].

    Args:
        rows: float32 [rows, in].
        times: float32 [rows], how many rows each stands for.
    """
    size = rows.abs().unflatten(1, (-1, group_size))
    size = size / size.amax(2, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return floored(times @ size.flatten(1) / times.sum())


def scaled_gram(gram: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The Gram matrix of x / s: G_jk / (s_j s_k)."""
    return gram / factor[:, None] / factor


def diagonal_blocks(gram: torch.Tensor, size: int) -> torch.Tensor:
    """G_gg of every group, float32 [groups, size, size]."""
    return torch.stack([gram[start : start + size, start : start + size] for start in range(0, len(gram), size)])


def clip(weight: torch.Tensor, gram: torch.Tensor, grid: Grid) -> Grid:
    """Shrink the scale S of every group g of every row i to where its own output error is least.

        error_ig(a) = dW_ig G_gg dW_ig',    dW_ig / S_ig = t - a k,    k = clamp(round(t / a)),    t = W_ig / S_ig

    k is less the zero, if there is one.
    Upstream's method leaves q and k alone: their errors multiply, and clipping was found to cost accuracy there.

    Args:
        weight: float32 [out, in], already scaled.
        gram: float32 [in, in] of the scaled input (``scaled_gram``).
        grid: what just covers the weight.
    """
    groups = grid.scale.shape[1]
    size = weight.shape[1] // groups
    blocks = diagonal_blocks(gram, size)
    rows = max(CLIPPED_AT_ONCE[weight.device.type] // weight.shape[1], 1)
    shrinks = []
    for start in range(0, len(weight), rows):
        scale = grid.scale[start : start + rows].t()[..., None]
        zero = torch.zeros_like(scale) if grid.zero is None else grid.zero[start : start + rows].t()[..., None]
        t = weight[start : start + rows].unflatten(1, (groups, size)).transpose(0, 1) / scale
        shrinks.append(best_shrink(t, grid.low - zero, grid.high - zero, blocks).t())
    return replace(grid, scale=grid.scale * torch.cat(shrinks))


def best_shrink(t: torch.Tensor, low: torch.Tensor, high: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """The a of least error of every row of every group, float32 [groups, rows].

    Args:
        t: float32 [groups, rows, size].
        low, high: the range of k less the zero, float32 [groups, rows, 1].
        blocks: G_gg, float32 [groups, size, size].
    """
    change, product = torch.empty_like(t), torch.empty_like(t)
    best = t.new_ones(t.shape[:2])
    least = torch.full_like(best, torch.inf)
    for step in range(round((1 - CLIP_LEAST) / CLIP_STEP) + 1):
        a = 1 - step * CLIP_STEP
        k = torch.mul(t, 1 / a, out=change).round_()
        torch.minimum(torch.maximum(k, low, out=k), high, out=k)
        torch.sub(t, k, alpha=a, out=change)
        error = torch.bmm(change, blocks, out=product).mul_(change).sum(2)
        best.masked_fill_(error < least, a)
        torch.minimum(least, error, out=least)
    return best
