"""AWQ's searches: what they must find, and what must hold whatever the numbers."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from enginesmith.convert.numbers import awq
from enginesmith.convert.numbers.awq import clip, factor, relative_magnitude, scaled_gram, search
from enginesmith.convert.numbers.gptq import gptq, output_error
from enginesmith.convert.numbers.rounding import Grid
from enginesmith.convert.numbers.smoothing import sample_rows

SIZE = 64
GRID = partial(Grid.of, group_size=SIZE, bits=4, symmetric=True)


def layer(out: int = 96, in_: int = 256) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight, and 512 inputs of which a few channels are large, with their Gram matrix."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(512, in_, generator=draw)
    x[:, 3::32] *= 20
    return torch.randn(out, in_, generator=draw), x, x.t() @ x


def error(weight: torch.Tensor, gram: torch.Tensor, s: torch.Tensor) -> float:
    return float(output_error(GRID(weight * s).round(weight * s).dequantize() / s - weight, gram))


def test_search_finds_the_least_error_of_all_its_candidates() -> None:
    weight, x, gram = layer()
    magnitude = x.abs().mean(0)
    found = search([weight], gram, GRID, SIZE, magnitude)
    errors = [error(weight, gram, factor(magnitude, None, step / 20)) for step in range(21)]
    energy = float(output_error(weight, gram))
    assert found.error == pytest.approx(min(errors) / energy, rel=1e-4)
    assert found.alpha == errors.index(min(errors)) / 20
    assert min(errors) < 0.7 * errors[0]


def test_error_equals_that_of_the_layers_output() -> None:
    weight, x, gram = layer()
    found = search([weight], gram, GRID, SIZE)
    scaled = GRID(weight * found.factor).round(weight * found.factor).dequantize()
    wanted, got = x @ weight.t(), (x / found.factor) @ scaled.t()
    assert found.error == pytest.approx(float((got - wanted).square().sum() / wanted.square().sum()), rel=1e-3)


@pytest.mark.parametrize("by_weight", [False, True])
def test_never_worse_than_no_scaling(by_weight: bool) -> None:
    weight, _, gram = layer()
    none = error(weight, torch.eye(256), torch.ones(256)) / float(output_error(weight, torch.eye(256)))
    assert search([weight], torch.eye(256), GRID, SIZE, by_weight=by_weight).error <= none * (1 + 1e-6)
    assert search([weight], gram, GRID, SIZE, by_weight=by_weight).alpha is not None


def test_linears_that_share_an_input_are_scored_together() -> None:
    weight, x, gram = layer()
    magnitude = x.abs().mean(0)
    joint = search([weight[:32], weight[32:48], weight[48:]], gram, GRID, SIZE, magnitude)
    whole = search([weight], gram, GRID, SIZE, magnitude)
    assert joint.alpha == whole.alpha
    assert joint.error == pytest.approx(whole.error, rel=1e-5)


def test_a_sample_of_rows_chooses_as_all_rows_do() -> None:
    weight, x, gram = layer(out=1500)
    found = search([weight], gram, GRID, SIZE, x.abs().mean(0))
    errors = [error(weight, gram, factor(x.abs().mean(0), None, step / 20)) for step in range(21)]
    assert errors[round(20 * (found.alpha or 0))] < 1.03 * min(errors)
    sample, times = sample_rows(weight, 256)
    assert len(sample) <= 256
    assert float(times.sum()) == pytest.approx(1500)


def test_factor_is_normalised_and_dead_channels_stay_finite() -> None:
    weight, x, gram = layer()
    x[:, 7] = 0
    gram[7], gram[:, 7] = 0, 0
    weight[:, 9] = 0
    for by_weight in (False, True):
        found = search([weight], gram, GRID, SIZE, x.abs().mean(0), by_weight)
        assert found.factor.isfinite().all()
        assert (found.factor > 0).all()
        assert float(found.factor.max() * found.factor.min()) == pytest.approx(1, rel=1e-4)
    assert search([torch.zeros(8, 256)], gram, GRID, SIZE).error == 0


def test_relative_magnitude_is_at_most_one() -> None:
    weight, _, _ = layer()
    w = relative_magnitude(weight, torch.ones(len(weight)), SIZE)
    expected = (weight.abs() / weight.abs().view(96, 4, 64).amax(2).repeat_interleave(64, 1)).mean(0)
    torch.testing.assert_close(w, expected)


@pytest.mark.parametrize("symmetric", [True, False])
def test_clipping_lowers_the_error_of_every_group(symmetric: bool) -> None:
    weight, _, gram = layer()
    weight[:, ::50] *= 4
    grid = Grid.of(weight, SIZE, 4, symmetric)
    clipped = clip(weight, gram, grid)

    def group_errors(tried: Grid) -> torch.Tensor:
        change = (tried.round(weight).dequantize() - weight).view(-1, 4, SIZE)
        blocks = [change[:, g] @ gram[g * SIZE : (g + 1) * SIZE, g * SIZE : (g + 1) * SIZE] for g in range(4)]
        return (torch.stack(blocks, 1) * change).sum(2)

    assert (group_errors(clipped) <= group_errors(grid) * (1 + 1e-5)).all()
    assert (clipped.scale < grid.scale * 0.99).any()
    assert (clipped.scale >= grid.scale * 0.499).all()
    assert output_error(clipped.round(weight).dequantize() - weight, gram) < output_error(
        grid.round(weight).dequantize() - weight, gram
    )


def test_clipping_in_pieces_equals_clipping_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _, gram = layer()
    whole = clip(weight, gram, Grid.of(weight, SIZE, 4, False))
    monkeypatch.setattr(awq, "CLIPPED_AT_ONCE", {"cpu": 25 * 256})
    torch.testing.assert_close(clip(weight, gram, Grid.of(weight, SIZE, 4, False)).scale, whole.scale)


def test_gptq_after_awq_is_better_than_either() -> None:
    weight, x, gram = layer()
    found = search([weight], gram, GRID, SIZE, x.abs().mean(0))
    scaled, inner = weight * found.factor, scaled_gram(gram, found.factor)
    grid = clip(scaled, inner, GRID(scaled))
    both = output_error(gptq(scaled, inner, grid, act_order=True).dequantize() - scaled, inner)
    assert both < output_error(grid.round(scaled).dequantize() - scaled, inner)
    assert both < output_error(gptq(weight, gram, GRID(weight), act_order=True).dequantize() - weight, gram)
