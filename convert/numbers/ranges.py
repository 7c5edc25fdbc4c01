"""The range of a static activation scale: which |x| maps to 127.

Each method takes the statistics of an input and the smoothing factor s, and gives the range X of x / s, which is
0 for an input that was never anything but 0.
"""

from __future__ import annotations

from ...plugins.lazy import torch
from .inputs import InputStatistics

BINS = 2048
LEVELS = 128
MOMENTUM = 0.9
PERCENTILE = 0.9999
# Below this, 127 / X leaves float32.
SMALLEST = 1e-30


def absmax(statistics: InputStatistics, factor: torch.Tensor) -> float:
    """The largest |x / s| of any calibration token."""
    return float((statistics.channel_amax() / factor).max())


def moving_average(statistics: InputStatistics, factor: torch.Tensor) -> float:
    """m <- 0.9 m + 0.1 max|x / s| over the calibration sequences (Jacob et al. 2018, section 3.1)."""
    largest = (statistics.amax / factor).amax(1).tolist()
    average = largest[0]
    for value in largest[1:]:
        average = MOMENTUM * average + (1 - MOMENTUM) * value
    return float(average)


def percentile(statistics: InputStatistics, factor: torch.Tensor) -> float:
    """The value that 99.99 percent of |x / s| do not exceed (Wu et al. 2020, section 5.1)."""
    counts, width = histogram(statistics, factor)
    covered = counts.cumsum(0) / counts.sum()
    return float((int((covered < PERCENTILE).sum()) + 1) * width)


def mse(statistics: InputStatistics, factor: torch.Tensor) -> float:
    """argmin over X of sum (x - Q_X(x))^2, in a hundred steps up to the largest |x / s|."""
    counts, width = histogram(statistics, factor)
    centers = (torch.arange(BINS, device=counts.device) + 0.5) * width
    ranges = torch.linspace(0.01, 1, 100, device=counts.device) * BINS * width
    steps = ranges[:, None] / 127
    quantized = (centers / steps).round().clamp(max=127) * steps
    errors = ((quantized - centers).square() * counts).sum(1)
    return float(ranges[errors.argmin()])


def entropy(statistics: InputStatistics, factor: torch.Tensor) -> float:
    """argmin over X of KL(P || Q): P the histogram of |x / s| clipped at X, Q the same in 128 levels
    (Migacz 2017, "8-bit inference with TensorRT")."""
    counts, width = histogram(statistics, factor)
    best, best_divergence = BINS, float("inf")
    for bins in range(LEVELS, BINS + 1, LEVELS // 4):
        clipped = counts[:bins].clone()
        clipped[-1] += counts[bins:].sum()
        level = torch.arange(bins, device=counts.device) * LEVELS // bins
        occupied = counts[:bins] > 0
        total = torch.zeros(LEVELS, device=counts.device).index_add_(0, level, counts[:bins])
        share = torch.zeros(LEVELS, device=counts.device).index_add_(0, level, occupied.float())
        coarse = torch.where(occupied, total[level] / share[level].clamp_min(1), 0)
        p, q = clipped / clipped.sum(), coarse / coarse.sum().clamp_min(1e-30)
        seen = p > 0
        divergence = float((p[seen] * (p[seen] / q[seen].clamp_min(1e-12)).log()).sum())
        if divergence < best_divergence:
            best, best_divergence = bins, divergence
    return float(best * width)


def histogram(statistics: InputStatistics, factor: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Weighted counts of |x / s| over the kept tokens in 2048 bins up to the absolute maximum, and a bin's width."""
    values = (statistics.tokens / factor).abs()
    width = max(absmax(statistics, factor), 1e-12) / BINS
    bins = (values / width).long().clamp_(max=BINS - 1)
    weights = statistics.weight[:, None].expand_as(values)
    return torch.bincount(bins.flatten(), weights.flatten().float(), BINS).float(), width


def static_range(method: str, statistics: InputStatistics, factor: torch.Tensor) -> float:
    """The range by one of METHODS; 1 for an input of zeros, which any scale quantizes to zeros."""
    seen = absmax(statistics, factor) > SMALLEST  # a histogram of nothing would give the width of its narrowest bins
    range_ = METHODS[method](statistics, factor) if seen else 0.0
    return range_ if range_ > SMALLEST else 1.0


METHODS = {
    "absmax": absmax,
    "moving_average": moving_average,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}
