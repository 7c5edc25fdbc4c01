"""Which figure of a task counts, which way it is better, and when a checkpoint's is too much worse."""

from __future__ import annotations

import math
from typing import Any

import pytest

from enginesmith.convert.evaluate.figures import Figure, beside, failures, figures


def results(values: dict[str, Any], **better: bool) -> dict[str, Any]:
    return {
        "results": {"task": {"alias": "task", "sample_len": 4, **values}},
        "higher_is_better": {"task": better},
        "n-samples": {"task": {"original": 9, "effective": 4}},
    }


def figure(metric: str, value: float, reference: float, higher: bool = True) -> Figure:
    return Figure("task", metric, "none", higher, True, 4, value, reference=reference)


@pytest.mark.parametrize(
    ("values", "main"),
    [
        ({"acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.4}, "acc_norm"),
        ({"acc,none": 0.5, "f1,none": 0.4}, "acc"),
        ({"exact_match,strict": 0.5, "exact_match,flexible": 0.6}, "exact_match"),
        ({"word_perplexity,none": 12.0, "bits_per_byte,none": 0.4, "x_stderr,none": "N/A"}, "word_perplexity"),
    ],
)
def test_the_main_figure(values: dict[str, Any], main: str) -> None:
    found = figures(results(values, word_perplexity=False, bits_per_byte=False, acc=True))
    (own,) = [one for one in found if one.main]
    assert own.metric == main
    assert own.higher_is_better == (main != "word_perplexity")
    assert {one.documents for one in found} == {4}


@pytest.mark.parametrize(
    ("one", "drop", "in_points"),
    [
        (figure("acc", 0.58, 0.6), 2.0, True),
        (figure("acc", 0.62, 0.6), -2.0, True),
        (figure("word_perplexity", 10.5, 10.0, False), 5.0, False),
        (figure("bits_per_byte", 0.75, 0.5, False), 50.0, False),
        (figure("bleu", 28.0, 30.0), 2.0, True),
        (figure("score", 90.0, 100.0), 10.0, False),
    ],
)
def test_what_worse_means(one: Figure, drop: float, in_points: bool) -> None:
    assert one.drop == pytest.approx(drop)
    assert one.in_points == in_points
    assert failures([one], ["task"], drop + 0.01) == []
    assert "more than --max_drop" in failures([one], ["task"], drop - 0.01)[0]
    assert failures([one], ["another"], drop - 0.01) == []
    assert failures([one], ["task"], None) == []


def test_what_is_no_number_fails() -> None:
    assert failures([figure("word_perplexity", math.inf, 9.0, False)], ["task"], None) == [
        "task: word_perplexity is inf"
    ]
    assert failures([figure("score", 1.0, math.nan)], ["task"], 5.0) != []


def test_side_by_side() -> None:
    ours, theirs = (figures(results({"acc,none": value, "acc_stderr,none": 0.1})) for value in (0.25, 0.5))
    assert ours[0].drop is None
    (one,) = beside(ours, theirs)
    assert (one.value, one.reference, one.drop, one.reference_error) == (0.25, 0.5, 25.0, 0.1)
