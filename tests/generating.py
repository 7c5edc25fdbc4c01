"""Generation beside the same computed anew: the whole prefix at every step, with no cache and nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from enginesmith.convert.generate.flight import Answer, Flight, Request
from enginesmith.convert.generate.network import Network
from enginesmith.convert.prove.layers import computed

CPU = torch.device("cpu")
# Prompts of different lengths, one of them longer than the answers of others.
LENGTHS = (3, 17, 1, 9, 2)
# By how much logits may be apart, of their deviation: sums in another order flip a rounding here and there.
MOST_APART, MEDIAN_APART = 0.25, 0.005


def prompts(vocab_size: int, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randint(vocab_size, (length,), generator=draw).tolist() for length in lengths]


def answered(
    proven: Any,
    asked: list[list[int]],
    tokens: int = 10,
    most: int = 3,
    device: torch.device = CPU,
    **request: Any,
) -> list[Answer]:
    """Answers to prompts, of which some wait until others have left."""
    network = Network(proven, device, max(map(len, asked)) + tokens)
    flight = Flight(network, most)
    answers = [flight.add(Request(ids, tokens - n % 3, keeps_logits=True, **request)) for n, ids in enumerate(asked)]
    while flight.busy:
        flight.step()
    return answers


@torch.inference_mode()
def computed_anew(proven: Any, ids: list[int]) -> torch.Tensor:
    """Logits behind every token of a sequence, float32 [tokens, vocab_size]; by a pass over the whole of it."""
    runtime, hidden = proven.runtime(len(ids), CPU), proven.embedding()(torch.tensor([ids]))
    for index in range(proven.model.num_hidden_layers):
        hidden = computed(runtime, index, proven.executed(index, CPU).prepared(), hidden)
    return runtime.logits(hidden[0], proven.head(CPU).map(torch.Tensor.float))


def assert_as_computed_anew(proven: Any, answers: list[Answer]) -> None:
    """Every token is the most likely one behind the whole prefix before it."""
    all_apart = []
    for answer in answers:
        prompt, made = list(answer.request.ids), answer.ids
        anew = computed_anew(proven, prompt + made)[len(prompt) - 1 : -1]
        apart = (anew - torch.stack(answer.logits)).abs().amax(1) / anew.std()
        assert float(apart.max()) < MOST_APART
        chosen = anew.gather(1, torch.tensor(made)[:, None])[:, 0]
        assert bool((anew.amax(1) - chosen <= 2 * apart * anew.std()).all())
        all_apart.append(apart)
    assert float(torch.cat(all_apart).median()) < MEDIAN_APART
