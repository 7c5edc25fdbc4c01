"""SmoothQuant: move the difficulty of quantization from activations to weights.

    y = x W' = (x / s) (s W)'        s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)

Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", equations 3 and 4. All linears that read one input share one s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...plugins import int8, smooth_quant_gemm
from . import ranges
from .inputs import InputStatistics
from .rounding import row_amax, to_int8

COARSE_ALPHAS = [0.0, 0.25, 0.5, 0.75, 1.0]
FINE_STEP = 0.125
# A channel's range counts as at least this fraction of the widest one's, so that dead channels keep s finite.
FLOOR = 1e-5
# Rows of a matrix that searches look at, a quarter of them the ones with the largest weights.
SAMPLED_ROWS = 1024
# Iterations of ``balance``; the noise has all but settled by then.
STEPS = 10


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
class Block:
    """The rows of one matrix in a group, as the search sees them.

    Attributes:
        sample: float32 [rows, in]; those with the largest weights, and some of the others, evenly taken.
        times: float32 [rows]; how many rows each of them stands for.
        amax: float32 [in], max_i |W_ij| over all rows.
        per_channel: every row has its own scale; otherwise the matrix has one.
    """

    sample: torch.Tensor
    times: torch.Tensor
    amax: torch.Tensor
    per_channel: bool

    @staticmethod
    def of(weight: torch.Tensor, per_channel: bool) -> Block:
        return Block(*sample_rows(weight, SAMPLED_ROWS), weight.abs().amax(0), per_channel)

    def scales(self, smoothed: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """127 times the step of every sampled row, float32 [rows]; smoothed is sample * s."""
        if self.per_channel:
            return row_amax(smoothed)
        return (self.amax * s).max().expand(smoothed.shape[0])


def sample_rows(weight: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that stand for all, float32 [rows, in], and how many each stands for (see ``sampled``)."""
    rows, times = sampled(weight, most)
    return weight[rows], times


def sampled(weight: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A quarter of them those with the largest weights, the others evenly taken; and how many rows each stands for.

    Args:
        weight: float32 [out, in].
        most: the number of rows to take at most; a smaller weight is taken whole.

    Returns:
        int64 [rows], which they are, and float32 [rows].
    """
    if len(weight) <= most:
        return torch.arange(len(weight), device=weight.device), weight.new_ones(len(weight))
    order = row_amax(weight).argsort(descending=True, stable=True)
    top, rest = order[: most // 4], order[most // 4 :]
    some = rest[:: math.ceil(len(rest) / (most - len(top)))]
    times = torch.cat((weight.new_ones(len(top)), weight.new_full((len(some),), len(rest) / len(some))))
    return torch.cat((top, some)), times


def factor(activation_amax: torch.Tensor, weight_amax: torch.Tensor, alpha: float) -> torch.Tensor:
    """Equation 4: s = a^alpha / w^(1 - alpha), at least 1e-5; both [in]."""
    return (floored(activation_amax).pow(alpha) / floored(weight_amax).pow(1 - alpha)).clamp_min(1e-5)


def choose(
    statistics: InputStatistics,
    blocks: list[Block],
    alpha: float | None,
    act_range: str | None,
    rows: torch.Tensor | None = None,
) -> Smoothing:
    """The smoothing factor of a group, and the static range of its input.

    Args:
        statistics: of the group's input.
        blocks: the group's matrices.
        alpha: the migration strength, or None to search it against the output error.
        act_range: None for scales per token; "auto" to search the range too; or a method of ranges.METHODS.
        rows: channels with the same number have the same factor, int64 [in]; those that one row of a weight makes.
    """
    amax, weight_amax = statistics.channel_amax(), torch.stack([block.amax for block in blocks]).amax(0)
    if rows is not None:
        amax, weight_amax = pooled(amax, rows, "amax"), pooled(weight_amax, rows, "amax")
    method = "absmax" if act_range == "auto" else act_range

    def range_of(s: torch.Tensor) -> float | None:
        return None if method is None else ranges.static_range(method, statistics, s)

    if alpha is not None:
        s = factor(amax, weight_amax, alpha)
        best = Smoothing(s, range_of(s), alpha, None)
        if act_range != "auto":
            return best
    output_error = error_of(statistics, blocks)
    if alpha is None:

        def tried(value: float | None, s: torch.Tensor) -> Smoothing:
            return Smoothing(s, range_of(s), value, output_error(s, range_of(s)))

        coarse = [tried(None, torch.ones_like(amax))]
        coarse += [tried(value, factor(amax, weight_amax, value)) for value in COARSE_ALPHAS]
        best = least(coarse)
        if best.alpha is not None:
            around = (best.alpha - FINE_STEP, best.alpha + FINE_STEP)
            fine = [tried(value, factor(amax, weight_amax, value)) for value in around if 0 <= value <= 1]
            best = least([best, *fine])
        s = balance(statistics, blocks, best.factor, act_range is not None)
        s = s if rows is None else pooled(s.log(), rows, "mean").exp()
        best = least([best, tried(best.alpha, s)])
    if act_range == "auto":
        s = best.factor
        found = sorted({ranges.static_range(name, statistics, s) for name in ranges.METHODS}, reverse=True)
        best = least([Smoothing(s, range_, best.alpha, output_error(s, range_)) for range_ in found])
    return best


def unscaled(statistics: InputStatistics, blocks: list[Block], act_range: str | None) -> Smoothing:
    """No factor, and the static range of least output error; arguments as for ``choose``."""
    none = torch.ones_like(statistics.channel_amax())
    if act_range is None:
        return Smoothing(none, None, None, None)
    methods = ranges.METHODS if act_range == "auto" else (act_range,)
    found = sorted({ranges.static_range(name, statistics, none) for name in methods}, reverse=True)
    error = error_of(statistics, blocks)
    return least([Smoothing(none, range_, None, error(none, range_)) for range_ in found])


def pooled(x: torch.Tensor, rows: torch.Tensor, how: str) -> torch.Tensor:
    """Of every channel [in], the largest ("amax") or "mean" number of those with its row; rows: int64 [in]."""
    found = x.new_zeros(int(rows.max()) + 1).scatter_reduce(0, rows, x, how, include_self=False)
    return found[rows]


def of_rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The number of every row, of numbers of channels [in] that are equal where their rows are."""
    return x.new_empty(int(rows.max()) + 1).index_copy_(0, rows, x)


def least(choices: list[Smoothing]) -> Smoothing:
    """The choice of least output error, the first of equals."""
    return min(choices, key=lambda choice: math.inf if choice.error is None else choice.error)


def error_of(statistics: InputStatistics, blocks: list[Block]) -> Callable[[torch.Tensor, float | None], float]:
    """The output error of a candidate (s, X), by executing its integers on the kept tokens and sampled rows.

    error = sum_t n_t ||q(x_t / s) q(s W)' - x_t W'||^2 / sum_t n_t ||x_t W'||^2, n_t the tokens t stands for.
    """
    tokens, count = statistics.tokens, statistics.weight
    weight = torch.cat([block.sample for block in blocks])
    rows = [block.sample.shape[0] for block in blocks]
    times = torch.cat([block.times for block in blocks])
    wanted = tokens @ weight.t()
    energy = float(count @ wanted.square() @ times) or 1.0

    def error(s: torch.Tensor, range_: float | None) -> float:
        smoothed = weight * s
        pieces = zip(blocks, smoothed.split(rows), strict=True)
        scales = torch.cat([block.scales(piece, s) for block, piece in pieces])
        x = tokens / s
        largest = row_amax(x)[:, None] if range_ is None else torch.full_like(x[:, :1], range_)
        x_scale = largest / 127
        integers, steps = (int8.saturate(x / x_scale), to_int8(smoothed, scales)), (x_scale, scales / 127)
        got = smooth_quant_gemm.run(*integers, *steps, torch.float32, most_few=0).sub_(wanted)
        return float(count @ got.square_() @ times) / energy

    return error


def balance(statistics: InputStatistics, blocks: list[Block], start: torch.Tensor, static: bool) -> torch.Tensor:
    """Refine s until the rounding noise of activations and weights balance in every channel.

    With independent rounding errors the output noise of (s, steps) is, up to a constant,

        P Q + R S,   P = sum_t n_t dx_t^2,   Q = sum_j s_j^2 |W_j|^2,   R = sum_i dw_i^2,   S = sum_j E_j / s_j^2

    where dx_t = max_j |x_tj| / s_j and dw_i = max_j |W_ij| s_j are (127 times) the steps of token t and row i,
    |W_j|^2 the energy of a weight column and E_j = sum_t n_t x_tj^2. Setting the gradient by log s_j to zero,
    with p_j (d_j) the part of P (R) whose maximum lies in channel j:

        s_j^4 = (R E_j + Q p_j s_j^2) / (P |W_j|^2 + S d_j / s_j^2)

    which is iterated. A step that the whole matrix shares is held fixed instead, and s kept where its channel
    does not raise it: a static range gives s_j >= a_j / X, a per-tensor weight scale s_j <= w / max_i |W_ij|.

    Args:
        start: s to begin with, float32 [in]; its weight ranges are kept where rows share a scale.
        static: activations have one calibrated scale.

    Returns:
        the s of least noise that was met, float32 [in].
    """
    own = [block for block in blocks if block.per_channel]
    shared = [block for block in blocks if not block.per_channel]
    tokens, count = statistics.tokens.abs(), statistics.weight
    amax = floored(statistics.channel_amax())
    input_energy = floored(count @ tokens.square())
    weight_energy = floored(torch.stack([block.times @ block.sample.square() for block in blocks]).sum(0))
    per_row = torch.cat([amax.new_zeros(0, len(amax)), *(block.sample.abs() for block in own)])
    times = torch.cat([amax.new_zeros(0), *(block.times for block in own)])
    shared_rows = sum(float(block.times.sum()) for block in shared)
    shared_amax = floored(torch.stack([block.amax for block in shared]).amax(0)) if shared else None

    s = start / (start / amax).min() if static else start
    limit = 0.0
    if shared_amax is not None:
        limit = float((amax * shared_amax).max() if static else (s * shared_amax).max())
    best, least = s, float("inf")
    for _ in range(STEPS + 1):
        if static:
            s = torch.maximum(s, amax)
        if shared_amax is not None:
            s = torch.minimum(s, limit / shared_amax)
        squared = s.square()
        p, where_p = (tokens / s).max(1)
        p = count * p.square() if not static else count
        d, where_d = (per_row * s).max(1)
        d = times * d.square()
        big_p, big_q = p.sum(), (squared * weight_energy).sum()
        big_r, big_s = d.sum() + shared_rows * limit**2, (input_energy / squared).sum()
        noise = float(big_p * big_q + big_r * big_s)
        if noise < least:
            best, least = s, noise
        upward = big_r * input_energy
        if not static:
            upward = upward + big_q * torch.zeros_like(s).index_add_(0, where_p, p) * squared
        downward = big_p * weight_energy + big_s * torch.zeros_like(s).index_add_(0, where_d, d) / squared
        # Half a step on a logarithmic scale, for the maxima move with s.
        s = (s * (upward / downward).pow(0.25)).sqrt()
    return best


def floored(x: torch.Tensor) -> torch.Tensor:
    """Values no smaller than a tiny fraction of the largest, so that dead channels stay finite."""
    return x.clamp_min(FLOOR * float(x.max())).clamp_min(torch.finfo(torch.float32).tiny)
