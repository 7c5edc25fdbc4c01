"""How the next token is chosen: penalties, what is forbidden, and draws with the shares that they should have."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from enginesmith.convert.errors import InputError
from enginesmith.convert.generate.flight import Request, check
from enginesmith.convert.generate.options import GenerateOptions
from enginesmith.convert.generate.sampling import Chooser, Sampling, Words

LOGITS = torch.tensor([2.0, 1.0, -1.0, 0.5, 3.0])
DRAWS = 4000


def chosen(how: Sampling, made: tuple[int, ...] = (), bad: Words = (), ends: tuple[int, ...] = ()) -> tuple[int, float]:
    return Chooser(how, [0], ends, bad).choose(LOGITS.clone(), made)


def drawn(how: Sampling) -> list[float]:
    """The share of every token in many draws."""
    chooser = Chooser(how, [0], ())
    counts = Counter(chooser.choose(LOGITS.clone(), ())[0] for _ in range(DRAWS))
    return [counts[token] / DRAWS for token in range(len(LOGITS))]


def shares(logits: list[float]) -> list[float]:
    total = sum(map(math.exp, logits))
    return [math.exp(value) / total for value in logits]


def test_greedy() -> None:
    token, log_prob = chosen(Sampling())
    assert token == 4
    assert log_prob == pytest.approx(math.log(shares(LOGITS.tolist())[4]), abs=1e-6)


@pytest.mark.parametrize(
    ("how", "kept", "temperature"),
    [
        (Sampling(top_k=0), (0, 1, 2, 3, 4), 1.0),
        (Sampling(top_k=3), (4, 0, 1), 1.0),
        (Sampling(top_k=0, temperature=0.5), (0, 1, 2, 3, 4), 0.5),
        (Sampling(top_k=0, top_p=0.7), (4, 0), 1.0),  # 4 alone has 0.624 of it
        (Sampling(top_k=0, top_p=0.6), (4,), 1.0),
        (Sampling(top_k=3, top_p=0.7), (4, 0), 1.0),
        (Sampling(top_k=0, top_p=1e-9), (4,), 1.0),
    ],
)
def test_draws(how: Sampling, kept: tuple[int, ...], temperature: float) -> None:
    wanted = dict(zip(kept, shares([float(LOGITS[token]) / temperature for token in kept]), strict=True))
    for token, share in enumerate(drawn(how)):
        assert share == pytest.approx(wanted.get(token, 0.0), abs=0.03)
        assert (share > 0) <= (token in wanted)


def test_seeds() -> None:
    def tokens(seed: int) -> list[int]:
        chooser = Chooser(Sampling(top_k=0, seed=seed), [0], ())
        return [chooser.choose(LOGITS.clone(), ())[0] for _ in range(20)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_penalties_count_the_prompt_too() -> None:
    """l / r or l r, less presence and frequency * count, of tokens in the prompt (0) and behind it (4, 4, 2)."""
    chooser = Chooser(Sampling(temperature=2.0, repetition=1.5, presence=0.25, frequency=0.1), [0], ())
    chooser.bias = torch.tensor([0.0, 3.0, 0.0, 0.0, 0.0])
    changed = chooser.changed(LOGITS.clone(), (4, 4, 2))
    half = [value / 2 for value in (LOGITS + chooser.bias).tolist()]
    wanted = [half[0] / 1.5 - 0.35, half[1], half[2] * 1.5 - 0.35, half[3], half[4] / 1.5 - 0.45]
    assert changed.tolist() == pytest.approx(wanted, abs=1e-6)


def test_what_may_not_come() -> None:
    assert chosen(Sampling(), bad=((4,),))[0] == 0
    assert chosen(Sampling(), bad=((1, 4),))[0] == 4
    assert chosen(Sampling(), made=(1,), bad=((1, 4),))[0] == 0
    assert chosen(Sampling(), made=(0, 1), bad=((0, 1, 4), (1, 0)))[0] == 1
    assert chosen(Sampling(min_tokens=2), ends=(4,))[0] == 0
    assert chosen(Sampling(min_tokens=2), made=(0, 0), ends=(4,))[0] == 4


def test_a_bias() -> None:
    bias = torch.zeros(5)
    bias[2] = 9.0
    assert Chooser(Sampling(), [0], (), (), bias).choose(LOGITS.clone(), ())[0] == 2


def test_what_options_mean() -> None:
    assert GenerateOptions().sampling == Sampling()
    assert GenerateOptions(temperature=0).sampling.top_k == 1
    assert GenerateOptions(temperature=0.5).sampling == Sampling(temperature=0.5, top_k=0)
    assert GenerateOptions(top_k=7).sampling == Sampling(top_k=7)
    assert GenerateOptions(top_p=0.5, seed=3).sampling == Sampling(top_k=0, top_p=0.5, seed=3)
    penalties = {"repetition_penalty": 1.5, "presence_penalty": 0.25, "frequency_penalty": 0.5}
    assert GenerateOptions(**penalties).sampling == Sampling(repetition=1.5, presence=0.25, frequency=0.5)
    assert GenerateOptions(temperature=1e-320, seed=1).sampling.top_k == 1
    with pytest.raises(InputError, match="--temperature 0 takes the most likely token"):
        GenerateOptions(temperature=0, top_p=0.5).check()


def test_log_probs_are_of_what_was_chosen_from() -> None:
    """Temperature counts, whether or not a word is forbidden besides."""
    hot = Sampling(temperature=5.0)
    assert not Chooser(hot, [0], ()).plain
    wanted = math.log(shares([value / 5 for value in LOGITS.tolist()])[4])
    assert chosen(hot)[1] == pytest.approx(wanted, abs=1e-6)
    assert chosen(hot, bad=((3, 3),))[1] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("how", [Sampling(), Sampling(top_k=0)])
def test_nothing_can_come(how: Sampling) -> None:
    assert math.isnan(chosen(how, bad=tuple((token,) for token in range(5)))[1])
    assert math.isnan(Chooser(how, [0], ()).choose(torch.full((5,), math.nan), ())[1])


@pytest.mark.parametrize(
    "asked",
    [
        {"ids": [5]}, {"ends": (-1,)}, {"stop": ((9,),)}, {"bad": ((1, -1000),)},
        {"bias": torch.tensor([math.inf] * 5)}, {"bias": torch.tensor([math.nan] * 5)},
        {"sampling": Sampling(temperature=1e-40)}, {"sampling": Sampling(repetition=1e-40)},
        {"sampling": Sampling(presence=math.nan)}, {"sampling": Sampling(frequency=-1e308)},
    ],
)  # fmt: skip
def test_what_no_choice_survives_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        check(Request(**({"ids": [0], "max_tokens": 1} | asked)), 5)
