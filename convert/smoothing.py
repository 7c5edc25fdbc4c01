"""SmoothQuant: move the difficulty of quantization from activations to weights.

    y = x W' = (x / s) (s W)'        s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)

Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", equations 3 and 4. All linears that read one input share one s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..plugins import int8
from . import ranges
from .calibrate import InputStatistics
from .rounding import row_amax, to_int8

ALPHAS = [step / 20 for step in range(21)]
# Candidate static ranges, as fractions of the largest smoothed activation.
CLIPS = [1.0]
# A channel's range counts as at least this fraction of the widest one's, so that dead channels keep s finite.
FLOOR = 1e-5


@dataclass(frozen=True)
class Smoothing:
    """What was chosen for one group of linears.

    Attributes:
        factor: s, float32 [in].
        range: X, the static range of x / s; None where activations are quantized per token.
        alpha: the migration strength that gave s; None for no smoothing.
        error: squared error of the quantized output over the squared output, on the kept tokens;
            None where nothing was searched.
    """

    factor: torch.Tensor
    range: float | None
    alpha: float | None
    error: float | None


@dataclass(frozen=True)
class Rows:
    """How the rows of a group's stacked weights are scaled: one scale a row, or one for all of them."""

    count: int
    per_channel: bool


def factor(activation_amax: torch.Tensor, weight_amax: torch.Tensor, alpha: float) -> torch.Tensor:
    """Equation 4: s = a^alpha / w^(1 - alpha), at least 1e-5; both [in]."""
    a = activation_amax.clamp_min(FLOOR * float(activation_amax.max())).clamp_min(torch.finfo(torch.float32).tiny)
    w = weight_amax.clamp_min(FLOOR * float(weight_amax.max())).clamp_min(torch.finfo(torch.float32).tiny)
    return (a.pow(alpha) / w.pow(1 - alpha)).clamp_min(1e-5)


def row_scales(weight: torch.Tensor, rows: list[Rows]) -> torch.Tensor:
    """w of every row of stacked weights, float32 [out]: its own maximum, or that of its linear."""
    amax = row_amax(weight)
    pieces = amax.split([r.count for r in rows])
    return torch.cat(
        [
            piece if r.per_channel else piece.max().expand_as(piece)
            for piece, r in zip(pieces, rows, strict=True)
        ]
    )


def choose(
    statistics: InputStatistics,
    weight: torch.Tensor,
    rows: list[Rows],
    alpha: float | None,
    act_range: str | None,
) -> Smoothing:
    """The smoothing factor of a group, and the static range of its input.

    Args:
        statistics: of the group's input.
        weight: float32 [out, in], the group's weights stacked.
        rows: how those rows are scaled.
        alpha: the migration strength, or None to search it against the output error.
        act_range: None for scales per token; "auto" to search the range too; or a method of ranges.METHODS.
    """
    amax, weight_amax = statistics.channel_amax(), weight.abs().amax(0)
    if alpha is not None and act_range != "auto":
        s = factor(amax, weight_amax, alpha)
        return Smoothing(s, None if act_range is None else ranges.METHODS[act_range](statistics, s), alpha, None)

    candidates: list[tuple[float | None, torch.Tensor]]
    if alpha is None:
        candidates = [(None, torch.ones_like(amax))]
        candidates += [(value, factor(amax, weight_amax, value)) for value in ALPHAS]
    else:
        candidates = [(alpha, factor(amax, weight_amax, alpha))]
    output_error = error_of(statistics, weight, rows)
    best: Smoothing | None = None
    for value, s in candidates:
        for range_ in candidate_ranges(statistics, s, act_range):
            error = output_error(s, range_)
            if best is None or best.error is None or error < best.error:
                best = Smoothing(s, range_, value, error)
    assert best is not None
    return best


def candidate_ranges(
    statistics: InputStatistics, s: torch.Tensor, act_range: str | None
) -> list[float | None]:
    if act_range is None:
        return [None]
    if act_range == "auto":
        largest = ranges.absmax(statistics, s)
        return [clip * largest for clip in CLIPS]
    return [ranges.METHODS[act_range](statistics, s)]


def error_of(
    statistics: InputStatistics, weight: torch.Tensor, rows: list[Rows]
) -> Callable[[torch.Tensor, float | None], float]:
    """The output error of a candidate (s, X), by executing its integers on the kept tokens.

    error = sum_t n_t ||q(x_t / s) q(s W)' - x_t W'||^2 / sum_t n_t ||x_t W'||^2, n_t the tokens t stands for.
    """
    tokens, count = statistics.tokens, statistics.weight
    wanted = tokens @ weight.t()
    energy = float((count @ wanted.square()).sum()) or 1.0

    def error(s: torch.Tensor, range_: float | None) -> float:
        smoothed = weight * s
        scales = row_scales(smoothed, rows)
        x = tokens / s
        largest = x.abs().amax(1, keepdim=True) if range_ is None else torch.full_like(x[:, :1], range_)
        x_scale = largest.clamp_min(torch.finfo(torch.float32).tiny) / 127
        got = int8.matmul(int8.saturate(x / x_scale), to_int8(smoothed, scales)).float()
        return float((count @ (got * x_scale * (scales / 127) - wanted).square()).sum()) / energy

    return error
