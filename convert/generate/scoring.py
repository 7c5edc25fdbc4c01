"""How likely tokens are behind others: one pass for many sequences, one computation of a context that several share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from .network import ROWS, Network
from .passes import Piece

# Tokens of the KV cache of the sequences that are scored at once.
TOKENS = 4096


@dataclass(frozen=True)
class Continuation:
    """Tokens whose likelihood is asked for.

    Attributes:
        context: ids before them, at least one.
        ids: theirs, at least one.
    """

    context: tuple[int, ...]
    ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens that are read to predict all of them."""
        return len(self.context) + len(self.ids) - 1


# Continuations of one context with their numbers, the longest first.
Group = list[tuple[int, Continuation]]


class Reading:
    """A pass, and which tokens its hidden states are to predict.

    Args:
        network: has seen what comes before the pieces.
    """

    def __init__(self, network: Network):
        self.network = network
        self.pieces: list[Piece] = []
        self.ids: list[int] = []
        self.rows: list[int] = []
        self.targets: list[int] = []
        self.numbers: list[int] = []

    def read(self, slot: int, first: int, ids: Sequence[int]) -> int:
        """A piece of the pass; the row of its first hidden state."""
        self.pieces.append(Piece(slot, first, len(ids)))
        self.ids += ids
        return len(self.ids) - len(ids)

    def predict(self, number: int, row: int, ids: Sequence[int]) -> None:
        """Tokens of a continuation that the hidden states from a row on predict."""
        self.rows += range(row, row + len(ids))
        self.targets += ids
        self.numbers += [number] * len(ids)

    def judged(self) -> Iterator[tuple[int, float, bool]]:
        """Of every token: its continuation's number, the logarithm of its probability, whether none is likelier."""
        if not self.pieces:
            return
        hidden = self.network(self.pieces, self.ids)[self.rows]
        targets = torch.tensor(self.targets, device=hidden.device)
        log_probs, most_likely = list[float](), list[bool]()
        for rows, wanted in zip(hidden.split(ROWS), targets.split(ROWS), strict=True):
            logits = self.network.logits(rows)
            own = logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(-1)
            log_probs += own.tolist()
            most_likely += (logits.argmax(-1) == wanted).tolist()
        yield from zip(self.numbers, log_probs, most_likely, strict=True)


@torch.inference_mode()
def log_likelihoods(
    network: Network,
    asked: Sequence[Continuation],
    most: int | None = None,
    on_done: Callable[[int], None] = lambda number: None,
) -> list[tuple[float, bool]]:
    """Of every continuation the logarithm of its probability, and whether greedy decoding would give it.

    Args:
        most: so many are computed at once, or those of one context; None for as many as ``TOKENS`` holds.
        on_done: told how many are done.
    """
    totals, greedy, done = [0.0] * len(asked), [True] * len(asked), 0
    for batch in batches(groups(asked), most):
        for number, log_prob, most_likely in scored(network, batch):
            totals[number] += log_prob
            greedy[number] &= most_likely
        done += sum(map(len, batch))
        on_done(done)
    return list(zip(totals, greedy, strict=True))


def groups(asked: Sequence[Continuation]) -> list[Group]:
    """Continuations by context, those that need most tokens first."""
    found: dict[tuple[int, ...], Group] = {}
    for number, one in enumerate(asked):
        found.setdefault(one.context, []).append((number, one))
    each = [sorted(group, key=lambda pair: -len(pair[1].ids)) for group in found.values()]
    return sorted(each, key=lambda group: -group[0][1].tokens)


def batches(ordered: Sequence[Group], most: int | None) -> Iterator[list[Group]]:
    """Groups that are computed together; the first of each has the longest sequence."""
    batch: list[Group] = []
    for group in ordered:
        together = [*batch, group]
        tokens = together[0][0][1].tokens * sum(map(slots, together))
        if batch and (tokens > TOKENS or sum(map(len, together)) > (most or TOKENS)):
            yield batch
            together = [group]
        batch = together
    if batch:
        yield batch


def slots(group: Group) -> int:
    """Sequences that a group has in the cache: tokens behind a context only for those of more than one token."""
    return 1 + sum(len(one.ids) > 1 for _, one in group[1:])


def scored(network: Network, batch: Sequence[Group]) -> Iterator[tuple[int, float, bool]]:
    """``Reading.judged`` of some groups: the longest continuation of each behind its context, then the others behind
    copies of it."""
    whole, others, slot = Reading(network), list[tuple[int, int, int, Continuation]](), 0
    for group in batch:
        (number, longest), *rest = group
        own, context = slot + slots(group) - 1, len(longest.context)
        row = whole.read(own, 0, [*longest.context, *longest.ids[:-1]]) + context - 1
        whole.predict(number, row, longest.ids)
        for number, one in rest:
            whole.predict(number, row, one.ids[:1])
            if len(one.ids) > 1:
                others.append((slot, own, number, one))
                slot += 1
        slot = own + 1
    network.cache.clear()
    yield from whole.judged()
    behind = Reading(network)
    for slot, own, number, one in others:
        network.cache.move(own, slot)
        behind.predict(number, behind.read(slot, len(one.context), one.ids[:-1]), one.ids[1:])
    yield from behind.judged()
