"""AWQ: scale up the weights that meet large activations before rounding, then clip each group where that helps.

    y = x W' = (x / s) (s W)'        s_j = m_j^alpha / w_j^(1 - alpha),  m_j = mean |x_j|

normalised so that max(s) min(s) = 1. The released method has no w; with it, w_j is the mean over the rows of
|W_ij| relative to the largest weight of its group. alpha is what minimises the output error

    trace(dW G dW'),    dW = Q(W s) / s - W,    G = X'X

which the Gram matrix scores without another forward pass. Lin et al. 2023, "AWQ: Activation-aware Weight
Quantization for LLM Compression and Acceleration", equations 4 and 5 and section 3.2 (clipping).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from .rounding import Grid
from .smoothing import floored, sample_rows

ALPHA_STEPS = 20
# Every which of them is tried first; then those around the best.
COARSE = 4
# Rows of each weight that the alpha search scores.
SAMPLED_ROWS = 256
# A group's scale is tried at 1, 0.95, ... of what would just cover it.
CLIP_STEP, CLIP_LEAST = 0.05, 0.5
# Rows that are clipped at once, to bound memory.
CLIPPED_ROWS = 1024


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
        group_size: of that grid, for w.
        magnitude: m, mean |x| of each channel, float32 [in]; sqrt(G_jj), which is its root mean square up to
            a factor, where none was measured.
        by_weight: divide by w^(1 - alpha).
    """
    samples = [sample_rows(weight, SAMPLED_ROWS) for weight in weights]
    rows, times = torch.cat([sample for sample, _ in samples]), torch.cat([times for _, times in samples])
    m = floored(gram.diagonal().clamp_min(0).sqrt() if magnitude is None else magnitude)
    w = relative_magnitude(rows, times, group_size) if by_weight else None
    energy = float(times @ ((rows @ gram) * rows).sum(1)) or 1.0

    def tried(alpha: float | None, s: torch.Tensor) -> Scaling:
        scaled = rows * s
        change = grid_of(scaled).snap(scaled).div_(s).sub_(rows)
        return Scaling(s, alpha, float(times @ (change @ gram).mul_(change).sum(1)) / energy)

    def at(step: int) -> Scaling:
        return tried(step / ALPHA_STEPS, factor(m, w, step / ALPHA_STEPS))

    coarse = {step: at(step) for step in range(0, ALPHA_STEPS + 1, COARSE)}
    best = min(coarse, key=lambda step: coarse[step].error)
    around = range(max(best - COARSE + 1, 0), min(best + COARSE, ALPHA_STEPS + 1))
    fine = {step: at(step) for step in around if step not in coarse}
    return min([tried(None, torch.ones_like(m)), *(coarse | fine).values()], key=lambda choice: choice.error)


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


def clip(weight: torch.Tensor, gram: torch.Tensor, grid: Grid) -> Grid:
    """Shrink the scale of every group of every row to where its own output error is least.

        error_ig = dW_ig G_gg dW_ig',    G_gg the block of G that belongs to group g's channels

    Upstream's method leaves q and k alone: their errors multiply, and clipping was found to cost accuracy there.

    Args:
        weight: float32 [out, in], already scaled.
        gram: float32 [in, in] of the scaled input (``scaled_gram``).
        grid: what just covers the weight.
    """
    groups = grid.scale.shape[1]
    size = weight.shape[1] // groups
    blocks = torch.stack([gram[start : start + size, start : start + size] for start in range(0, len(gram), size)])
    shrinks = [1 - step * CLIP_STEP for step in range(round((1 - CLIP_LEAST) / CLIP_STEP) + 1)]
    best = []
    for start in range(0, len(weight), CLIPPED_ROWS):
        rows = weight[start : start + CLIPPED_ROWS]
        zero = None if grid.zero is None else grid.zero[start : start + CLIPPED_ROWS]
        scale = grid.scale[start : start + CLIPPED_ROWS]
        least, chosen = torch.full_like(scale, torch.inf), scale
        for shrink in shrinks:
            tried = replace(grid, scale=scale * shrink, zero=zero)
            change = tried.snap(rows).sub_(rows).unflatten(1, (groups, size)).transpose(0, 1)
            error = (change @ blocks).mul_(change).sum(2).t()
            better = error < least
            least, chosen = torch.where(better, error, least), torch.where(better, tried.scale, chosen)
        best.append(chosen)
    return replace(grid, scale=torch.cat(best))
