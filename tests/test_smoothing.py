"""SmoothQuant's searches and ranges beside slow, plain accounts of the same, in float64 and loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from enginesmith.convert.numbers import ranges, smoothing
from enginesmith.convert.numbers.inputs import InputStatistics
from enginesmith.convert.numbers.smoothing import Block, Smoothing

IN = 24


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seen(scale: float = 1.0, kept: int = 40) -> InputStatistics:
    """An input with a few wide channels and one that is never active; kept tokens stand for one, two or three."""
    x = draw(6, 50, IN) * (1 + 8 * (torch.arange(IN) % 7 == 3)) * scale
    x[..., 5] = 0
    tokens = x.flatten(0, 1)[::7][:kept]
    return InputStatistics(x.abs().amax(1), tokens, torch.arange(len(tokens)) % 3 + 1.0)


def weights(rows: int = 12, seed: int = 1) -> torch.Tensor:
    weight = draw(rows, IN, seed=seed) * torch.logspace(-1, 0.5, rows)[:, None]
    weight[:, 9] = 0
    return weight


# The range of a static scale.


def weighted(statistics: InputStatistics, s: torch.Tensor) -> tuple[list[float], float]:
    """The histogram of |x / s|, 2048 bins up to the largest |x / s|, and a bin's width; token by token."""
    largest = float((statistics.amax.amax(0) / s).max())
    counts = [0.0] * 2048
    for token, times in zip(statistics.tokens / s, statistics.weight.tolist(), strict=True):
        for value in token.abs().tolist():
            counts[min(int(value / (largest / 2048)), 2047)] += times
    return counts, largest / 2048


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_histogram_counts_what_tokens_stand_for(scale: float) -> None:
    statistics, s = seen(scale), torch.rand(IN, generator=torch.Generator().manual_seed(2)) + 0.5
    counts, width = ranges.histogram(statistics, s)
    expected, expected_width = weighted(statistics, s)
    assert width == pytest.approx(expected_width)
    assert float((counts - torch.tensor(expected)).abs().sum()) <= 4  # a value between two bins may be in either
    assert float(counts.sum()) == float(statistics.weight.sum()) * IN


def test_largest_and_moving_average() -> None:
    s = torch.tensor([1.0, 2.0, 0.5])
    statistics = InputStatistics(torch.tensor([[1.0, 8, 1], [2, 2, 5], [7, 1, 0]]), torch.zeros(0, 3), torch.zeros(0))
    assert ranges.absmax(statistics, s) == 10
    assert ranges.moving_average(statistics, s) == pytest.approx(0.9 * (0.9 * 4 + 0.1 * 10) + 0.1 * 7)
    one = InputStatistics(statistics.amax[:1], statistics.tokens, statistics.weight)
    assert ranges.moving_average(one, s) == 4


@pytest.mark.parametrize("outliers", [1, 2, 5])
def test_percentile_leaves_out_one_value_in_ten_thousand(outliers: int) -> None:
    """Of 20000 values at most 2 may lie beyond."""
    values = torch.linspace(0, 10, 20000)
    values[-outliers:] = 40.96
    statistics = InputStatistics(torch.full((1, 1), 40.96), values[:, None], torch.ones(20000))
    covered = 40.96 if outliers > 2 else 10.0
    found = ranges.percentile(statistics, torch.ones(1))
    assert found == pytest.approx(covered, abs=0.0205)
    assert found >= covered - 1e-4


def test_least_squares_range() -> None:
    statistics, s = seen(), torch.ones(IN)
    counts, width = weighted(statistics, s)
    errors = {}
    for hundredth in range(1, 101):
        step = hundredth / 100 * 2048 * width / 127
        errors[hundredth] = sum(
            count * ((index + 0.5) * width - min(round((index + 0.5) * width / step), 127) * step) ** 2
            for index, count in enumerate(counts)
            if count
        )
    found = ranges.mse(statistics, s) / (2048 * width) * 100
    assert found == pytest.approx(round(found), abs=1e-3)
    assert errors[round(found)] <= min(errors.values()) * 1.001
    assert 1 < min(errors, key=errors.__getitem__) < 100


def divergence(counts: Sequence[float], bins: int) -> float:
    """KL(P || Q) of Migacz 2017: P clipped at a bin, Q its first bins in 128 levels of equal share."""
    p = [*counts[: bins - 1], sum(counts[bins - 1 :])]
    levels: list[list[int]] = [[] for _ in range(128)]
    for index in range(bins):
        levels[index * 128 // bins].append(index)
    q = [0.0] * bins
    for level in levels:
        occupied = [index for index in level if counts[index]]
        for index in occupied:
            q[index] = sum(counts[other] for other in level) / len(occupied)
    total_p, total_q = sum(p), sum(q)
    return sum(a / total_p * math.log(a / total_p / max(b / total_q, 1e-12)) for a, b in zip(p, q, strict=True) if a)


def test_range_of_least_divergence() -> None:
    values = (torch.arange(2048) + 0.5) * 12 / 2048
    times = (1e5 * torch.exp(-values.square() / 2)).round() + (torch.arange(2048) % 500 == 499)
    statistics = InputStatistics(torch.full((1, 1), 12.0), values[:, None], times)
    counts, width = weighted(statistics, torch.ones(1))
    found = {bins: divergence(counts, bins) for bins in range(128, 2049, 32)}
    assert ranges.entropy(statistics, torch.ones(1)) == pytest.approx(min(found, key=found.__getitem__) * width)
    assert 128 < min(found, key=found.__getitem__) < 2048


@pytest.mark.parametrize("method", ranges.METHODS)
def test_an_input_of_zeros_has_range_one(method: str) -> None:
    nothing = InputStatistics(torch.zeros(2, 3), torch.zeros(4, 3), torch.ones(4))
    assert ranges.static_range(method, nothing, torch.ones(3)) == 1
    small = InputStatistics(torch.full((2, 3), 1e-3), torch.full((4, 3), 1e-3), torch.ones(4))
    assert 0.5e-3 < ranges.static_range(method, small, torch.ones(3)) <= 1.001e-3


# Smoothing.


def test_factor_by_hand() -> None:
    found = smoothing.factor(torch.tensor([8.0, 2.0, 0.0]), torch.tensor([2.0, 4.0, 4.0]), 0.25)
    expected = [8**0.25 / 2**0.75, 2**0.25 / 4**0.75, (1e-5 * 8) ** 0.25 / 4**0.75]
    assert found.tolist() == pytest.approx(expected)
    assert smoothing.factor(torch.tensor([1e-9]), torch.tensor([1.0]), 1.0).tolist() == pytest.approx([1e-5])
    assert (smoothing.floored(torch.zeros(3)) > 0).all()


def test_a_sample_has_the_largest_rows_and_every_so_many_of_the_others() -> None:
    weight = draw(101, IN)
    rows, times = smoothing.sampled(weight, 20)
    order = sorted(range(101), key=lambda row: -float(weight[row].abs().max()))
    # 5 of the largest, then 15 at most of 96: every seventh, each of which stands for 96 / 14.
    assert rows.tolist() == order[:5] + order[5::7]
    assert times.tolist() == pytest.approx([1.0] * 5 + [96 / 14] * 14)
    assert float(times.sum()) == pytest.approx(101)
    taken, stand_for = smoothing.sample_rows(weight, 20)
    assert torch.equal(taken, weight[rows])
    assert torch.equal(stand_for, times)
    for most in (101, 500):
        assert smoothing.sampled(weight, most)[0].tolist() == list(range(101))
        assert smoothing.sampled(weight, most)[1].tolist() == [1.0] * 101


def blocks_of(per_channel: bool) -> list[Block]:
    """Two matrices; the first has a scale a row whatever the other has."""
    return [Block.of(weights(), True), Block.of(weights(7, 3), per_channel)]


def executed(statistics: InputStatistics, blocks: Sequence[Block], s: torch.Tensor, largest: float | None) -> float:
    """The output error of integers at every scale, token by token in float64."""
    off = energy = 0.0
    for token, times in zip(statistics.tokens, statistics.weight.tolist(), strict=True):
        x = token / s
        step = float(x.abs().max() if largest is None else largest) / 127
        integers = (x / step).round().clamp(-128, 127).double()
        for block in blocks:
            w = block.sample * s
            amax = w.abs().amax(1) if block.per_channel else (block.amax * s).max().expand(len(w))
            k = (w * (127 / amax)[:, None]).round().double()
            got = integers @ k.t() * step * amax.double() / 127
            wanted = token.double() @ block.sample.double().t()
            off += times * float((got - wanted).square() @ block.times.double())
            energy += times * float(wanted.square() @ block.times.double())
    return off / energy


@pytest.mark.parametrize("largest", [None, 20.0])
@pytest.mark.parametrize("per_channel", [True, False])
def test_error_is_that_of_executed_integers(per_channel: bool, largest: float | None) -> None:
    statistics, blocks = seen(), blocks_of(per_channel)
    blocks[0] = Block(blocks[0].sample, torch.linspace(1, 3, 12), blocks[0].amax, True)
    s = torch.rand(IN, generator=torch.Generator().manual_seed(4)) + 0.5
    found = smoothing.error_of(statistics, blocks)(s, largest)
    assert found == pytest.approx(executed(statistics, blocks, s, largest), rel=1e-3)


@pytest.mark.parametrize("act_range", [None, "absmax", "percentile", "auto"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_what_is_chosen_errs_least_of_all_that_is_tried(per_channel: bool, act_range: str | None) -> None:
    statistics, blocks = seen(), blocks_of(per_channel)
    chosen = smoothing.choose(statistics, blocks, None, act_range)
    amax, largest = statistics.amax.amax(0), torch.stack([block.amax for block in blocks]).amax(0)
    method, error = "absmax" if act_range == "auto" else act_range, smoothing.error_of(statistics, blocks)

    def tried(alpha: float | None, s: torch.Tensor) -> Smoothing:
        range_ = None if method is None else ranges.static_range(method, statistics, s)
        return Smoothing(s, range_, alpha, error(s, range_))

    def of(alphas: Sequence[float]) -> list[Smoothing]:
        return [tried(alpha, smoothing.factor(amax, largest, alpha)) for alpha in alphas]

    def best(choices: Sequence[Smoothing]) -> Smoothing:
        return min(choices, key=lambda choice: choice.error or 0.0)

    found = best([tried(None, torch.ones(IN)), *of([0, 0.25, 0.5, 0.75, 1])])
    assert found.alpha is not None
    around = [found.alpha - 0.125, found.alpha + 0.125]
    found = best([found, *of([alpha for alpha in around if 0 <= alpha <= 1])])
    balanced = smoothing.balance(statistics, blocks, found.factor, act_range is not None)
    found = best([found, tried(found.alpha, balanced)])
    if act_range == "auto":
        every = [ranges.static_range(name, statistics, found.factor) for name in ranges.METHODS]
        found = best([Smoothing(found.factor, one, found.alpha, error(found.factor, one)) for one in every])
    assert (chosen.alpha, chosen.range, chosen.error) == (found.alpha, found.range, found.error)
    assert torch.equal(chosen.factor, found.factor)


@pytest.mark.parametrize("act_range", [None, "absmax", "mse", "auto"])
def test_a_given_alpha_is_taken(act_range: str | None) -> None:
    statistics, blocks = seen(), blocks_of(True)
    chosen = smoothing.choose(statistics, blocks, 0.3, act_range)
    s = smoothing.factor(statistics.amax.amax(0), torch.stack([block.amax for block in blocks]).amax(0), 0.3)
    assert torch.equal(chosen.factor, s)
    assert chosen.alpha == 0.3
    assert (chosen.range is None) == (act_range is None)
    assert (chosen.error is not None) == (act_range == "auto")
    if act_range in ranges.METHODS:
        assert chosen.range == ranges.static_range(act_range, statistics, s)
    if act_range == "auto":
        error = smoothing.error_of(statistics, blocks)
        every = [ranges.static_range(name, statistics, s) for name in ranges.METHODS]
        assert chosen.error == min(error(s, one) for one in every)


def slow_balance(
    statistics: InputStatistics, blocks: Sequence[Block], start: torch.Tensor, static: bool
) -> tuple[torch.Tensor, list[float]]:
    """``balance`` channel by channel in float64: the s of least noise, and the noise of every step."""

    def floor(values: list[float]) -> list[float]:
        return [max(value, 1e-5 * max(values)) for value in values]

    x, count = statistics.tokens.abs().double().tolist(), statistics.weight.double().tolist()
    a = floor(statistics.amax.amax(0).double().tolist())
    energy_in = floor([sum(n * token[j] ** 2 for n, token in zip(count, x, strict=True)) for j in range(IN)])
    rows = [
        (abs_row, times, block.per_channel)
        for block in blocks
        for abs_row, times in zip(block.sample.abs().double().tolist(), block.times.double().tolist(), strict=True)
    ]
    energy_w = floor([sum(times * row[j] ** 2 for row, times, _ in rows) for j in range(IN)])
    own = [(row, times) for row, times, per_channel in rows if per_channel]
    shared = [block for block in blocks if not block.per_channel]
    shared_rows = sum(times for _, times, per_channel in rows if not per_channel)
    widest = floor(torch.stack([block.amax for block in shared]).amax(0).double().tolist()) if shared else None
    s = start.double().tolist()
    if static:
        least = min(value / amax for value, amax in zip(s, a, strict=True))
        s = [value / least for value in s]
    limit = max(u * v for u, v in zip(a if static else s, widest, strict=True)) if widest else 0.0
    found: list[tuple[float, list[float]]] = []
    for _ in range(11):
        if static:
            s = [max(value, amax) for value, amax in zip(s, a, strict=True)]
        if widest:
            s = [min(value, limit / amax) for value, amax in zip(s, widest, strict=True)]
        p_of, d_of = [0.0] * IN, [0.0] * IN
        p = sum(count) if static else 0.0
        for n, token in zip(count, x, strict=True) if not static else ():
            steps = [token[j] / s[j] for j in range(IN)]
            p += n * max(steps) ** 2
            p_of[steps.index(max(steps))] += n * max(steps) ** 2
        r = shared_rows * limit**2
        for row, times in own:
            steps = [row[j] * s[j] for j in range(IN)]
            r += times * max(steps) ** 2
            d_of[steps.index(max(steps))] += times * max(steps) ** 2
        q = sum(s[j] ** 2 * energy_w[j] for j in range(IN))
        t = sum(energy_in[j] / s[j] ** 2 for j in range(IN))
        found.append((p * q + r * t, s))
        fourth = [
            (r * energy_in[j] + q * p_of[j] * s[j] ** 2) / (p * energy_w[j] + t * d_of[j] / s[j] ** 2)
            for j in range(IN)
        ]
        s = [math.sqrt(s[j] * fourth[j] ** 0.25) for j in range(IN)]
    best = min(found)[1]
    return torch.tensor(best), [noise for noise, _ in found]


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("per_channel", [(True, True), (True, False), (False, False)])
def test_balance_beside_a_slow_account(per_channel: tuple[bool, bool], static: bool) -> None:
    statistics = seen()
    blocks = [Block.of(weights(), per_channel[0]), Block.of(weights(7, 3), per_channel[1])]
    blocks[1] = Block(blocks[1].sample, torch.linspace(1, 3, 7), blocks[1].amax, per_channel[1])
    largest = torch.stack([block.amax for block in blocks]).amax(0)
    start = smoothing.factor(statistics.amax.amax(0), largest, 0.5)
    found = smoothing.balance(statistics, blocks, start, static)
    expected, noise = slow_balance(statistics, blocks, start, static)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    assert min(noise) < 0.9 * noise[0]
