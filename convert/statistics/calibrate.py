"""Calibration tokens on their way through one decoder layer, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ..models.block import Steps, finished
from ..models.forward import MAKES, LayerForward
from ..models.layer import Layer
from ..models.pieces import Group
from .layer import LayerStatistics
from .wanted import Wanted
from .watch import Watch

OnBatch = Callable[[int], None]
# What tokens that wait inside a layer may take: bytes of memory, or a share of what a GPU has left.
WAITING_BYTES, WAITING_SHARE = 2**31, 0.5


def calibrate_layer(
    forward: LayerForward,
    hidden: torch.Tensor,
    wanted: Wanted,
    seed: int,
    batch: int,
    on_batch: OnBatch = lambda tokens: None,
    plain: frozenset[str] = frozenset(),
) -> LayerStatistics:
    """Advance all hidden states by one layer and gather its statistics.

    Args:
        forward: the layer, its weights loaded.
        hidden: [sequences, tokens, hidden_size], replaced in place by the layer's output.
        seed: draws the kept tokens; the same for every layer.
        batch: sequences per forward pass.
        on_batch: called with the number of tokens done after each batch.
        plain: groups of whose inputs nobody wants more than ranges.
    """
    watch, groups = Watch(forward, wanted, hidden, seed, plain), forward.family.groups
    if wanted.cache:
        for part, see in zip(forward.family.attention, (watch.query, watch.key, watch.value), strict=True):
            forward.watch(MAKES, part, see)
    for piece in hidden.split(batch):
        steps = forward.steps(piece)
        for group, read in zip(groups, steps, strict=False):
            watch.input(group, read)
        piece.copy_(finished(steps))
        on_batch(piece.shape[0] * piece.shape[1])
    for group in groups:
        watch.all_came(group)
    watch.end()
    return watch.seen


class Walk:
    """A layer that is quantized while tokens pass through it: linears see what the quantized ones before them compute
    (Frantar et al. 2022, "GPTQ", section 3.3; its authors' code calls it true-sequential).

    Tokens wait where they are, as far as there is room; others come again from the layer's start.

    Args:
        forward: computes the layer, whose number is index.
        layer: what is quantized: after a group has been yielded, its linears compute with what they are by then.
        hidden: [sequences, tokens, hidden_size], replaced in place behind the last group.
        seed, batch, on_batch, plain: as for ``calibrate_layer``; on_batch counts a share of the tokens at every group.

    Attributes:
        seen: what is known by now. Ranges of queries, keys and values are those of the float layer, and are known
            before the first group is quantized.
    """

    def __init__(
        self,
        forward: LayerForward,
        index: int,
        layer: Layer,
        hidden: torch.Tensor,
        wanted: Wanted,
        seed: int,
        batch: int,
        on_batch: OnBatch = lambda tokens: None,
        plain: frozenset[str] = frozenset(),
    ):
        self.forward, self.index, self.layer = forward, index, layer
        self.pieces, self.on_batch = hidden.split(batch), on_batch
        self.watch = Watch(forward, wanted, hidden, seed, plain)
        self.waiting: dict[int, Steps[torch.Tensor]] = {}
        self.room = room(forward) // batch

    @property
    def seen(self) -> LayerStatistics:
        return self.watch.seen

    def groups(self) -> Iterator[Group]:
        """Every group of linears, once all tokens stand before it."""
        self.forward.load(self.index, self.layer.computed())
        groups = self.forward.family.groups
        for place, group in enumerate(groups):
            for number, piece in enumerate(self.pieces):
                self.come(number, place, group)
                self.on_batch(piece.shape[0] * piece.shape[1] // len(groups))
            self.watch.all_came(group)
            yield group
            self.forward.replace(self.layer.unscaled(group))
        for number, piece in enumerate(self.pieces):
            piece.copy_(finished(self.steps(number, len(groups))))
        self.watch.end()

    def come(self, number: int, place: int, group: Group) -> None:
        """Bring some tokens before a group."""
        steps = self.steps(number, place)
        read = next(steps)
        self.watch.input(group, read)
        if place == 0 and self.watch.wanted.cache:
            query, key, value = (self.forward.made(part, read) for part in self.forward.family.attention)
            self.watch.query(query)
            self.watch.key(key)
            self.watch.value(value)
        if number < self.room:
            self.waiting[number] = steps

    def steps(self, number: int, place: int) -> Steps[torch.Tensor]:
        """Some tokens on their way to the group with this number."""
        if number in self.waiting:
            return self.waiting.pop(number)
        steps = self.forward.steps(self.pieces[number])
        for _ in range(place):
            next(steps)
        return steps


def room(forward: LayerForward) -> int:
    """How many sequences may wait inside a layer, with their hidden states and what they read there."""
    free = WAITING_BYTES
    if forward.device.type == "cuda":
        free = int(torch.cuda.mem_get_info(forward.device)[0] * WAITING_SHARE)
    widest = max(forward.model.dimension(linear.in_features) for linear in forward.family.linears)
    token = (forward.model.hidden_size + widest) * forward.dtype.itemsize
    return free // (token * forward.tokens)
