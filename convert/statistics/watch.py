"""What is seen of one decoder layer while calibration tokens pass through it."""

from __future__ import annotations

import math
from functools import partial

import torch

from ..models.forward import MAKES, NORMS, LayerForward
from ..models.pieces import Group
from ..numbers.gram import add_inputs, mirror
from ..numbers.inputs import InputStatistics
from .layer import LayerStatistics
from .wanted import Wanted

# The integers as wide as a floating-point number of so many bytes, and all of their bits but the sign.
SIZES = {2: (torch.int16, 0x7FFF), 4: (torch.int32, 0x7FFFFFFF)}
# Tokens kept of every calibration sequence, beside the one with the largest activation.
KEPT_PER_SEQUENCE = 4


class Watch:
    """Looks at a layer on behalf of what is wanted.

    Args:
        forward: the layer, which shows what linears make and norms read until ``end``.
        hidden: [sequences, tokens, hidden_size], that will pass.
        seed: draws the kept tokens; the same for every layer.
        plain: groups of whose inputs nobody wants more than ranges.

    Attributes:
        seen: what is known by now; inputs only of groups that all tokens have come to.
    """

    def __init__(
        self,
        forward: LayerForward,
        wanted: Wanted,
        hidden: torch.Tensor,
        seed: int,
        plain: frozenset[str] = frozenset(),
    ):
        self.forward, self.wanted, self.plain, self.seen = forward, wanted, plain, LayerStatistics({})
        sequences, self.length, _ = hidden.shape
        draw = torch.Generator().manual_seed(seed)
        self.kept = torch.randint(self.length, (sequences, KEPT_PER_SEQUENCE), generator=draw).to(hidden.device)
        self.inputs: dict[str, _InputWatcher] = {}
        if wanted.outputs:
            for part in (part for linear in forward.family.linears for part in linear.parts):
                forward.watch(MAKES, part, partial(_see_output, self.seen.output_amax, part))
            for norm in forward.family.norms:
                forward.watch(NORMS, norm.name, partial(_see_stream, self.seen.stream_amax, norm.name))

    def input(self, group: Group, x: torch.Tensor) -> None:
        """Some sequences' input of a group, [batch, tokens, in]; an expert's is [its tokens, in]."""
        if self.wanted.inputs:
            wanted = Wanted(ranges=True) if group.name in self.plain else self.wanted
            self.inputs.setdefault(group.name, _InputWatcher(self.kept, wanted))(x)
        if group.name in self.forward.family.of_experts:
            self.seen.tokens[group.name] = self.seen.tokens.get(group.name, 0) + len(x)

    def all_came(self, group: Group) -> None:
        """No more tokens will come to a group."""
        if self.wanted.inputs:
            self.seen.inputs[group.name] = self.inputs.pop(group.name).statistics()

    def query(self, query: torch.Tensor) -> None:
        """[batch, tokens, query_size], as its linear makes it."""
        self.seen.query_amax = _running_amax(self.seen.query_amax, self.forward.before_rotation(query))

    def key(self, key: torch.Tensor) -> None:
        """[batch, tokens, kv_size]; a KV cache holds it after the rotary embedding."""
        self.seen.key_amax = _running_amax(self.seen.key_amax, self.forward.rotate(key))

    def value(self, value: torch.Tensor) -> None:
        """[batch, tokens, kv_size]."""
        self.seen.value_amax = _running_amax(self.seen.value_amax, value)

    def end(self) -> None:
        """Look no more."""
        self.forward.watchers.clear()


class _InputWatcher:
    """Accumulates the statistics of one linear input over the batches of a pass."""

    def __init__(self, kept: torch.Tensor, wanted: Wanted):
        self.kept = kept  # [sequences, KEPT_PER_SEQUENCE] token positions
        self.wanted = wanted
        self.gram: torch.Tensor | None = None
        self.magnitude: torch.Tensor | None = None
        self.seen = self.rows = 0
        self.length = 0
        self.amax: list[torch.Tensor] = []
        self.tokens: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor) -> None:
        whole = x.dim() == 3
        x = x if whole else x[None]
        batch, self.length, width = x.shape
        self.rows += batch * self.length
        self.amax.append(largest(x, 1).float() if self.length else x.new_zeros(1, width, dtype=torch.float32))
        if self.wanted.tokens and whole:
            positions = self.kept[self.seen : self.seen + batch]
            positions = torch.cat((positions, largest(x, 2).argmax(1, keepdim=True)), 1)
            self.tokens.append(x.gather(1, positions[..., None].expand(-1, -1, width)).reshape(-1, width).float())
        self.seen += batch
        if self.wanted.gram:
            rows = x.reshape(-1, width)
            if self.gram is None:
                self.gram = rows.new_zeros(width, width, dtype=torch.float32)
            add_inputs(self.gram, rows)
        if self.wanted.magnitude:
            total = x.abs().sum((0, 1), dtype=torch.float32)
            self.magnitude = total if self.magnitude is None else total + self.magnitude

    def statistics(self) -> InputStatistics:
        kept, count, amax = self.kept.shape[1], max(self.rows, 1), torch.cat(self.amax)
        stands_for = torch.full((self.seen, kept + 1), (self.length - 1) / kept)
        stands_for[:, -1] = 1
        tokens, weight = amax.new_zeros(0, amax.shape[1]), amax.new_zeros(0)
        if self.tokens:
            tokens, weight = torch.cat(self.tokens), stands_for.flatten().to(amax.device)
        gram = None if self.gram is None else mirror(self.gram).div_(count)
        return InputStatistics(amax, tokens, weight, gram, None if self.magnitude is None else self.magnitude / count)


def _see_output(outputs: dict[str, torch.Tensor], part: str, y: torch.Tensor) -> None:
    outputs[part] = _running_amax(outputs.get(part), y)


def _see_stream(stream: dict[str, float], norm: str, x: torch.Tensor) -> None:
    stream[norm] = max(stream.get(norm, 0.0), float(torch.maximum(x.max(), -x.min())))


def _running_amax(so_far: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    amax = largest(x, 1).amax(0).float()
    return amax if so_far is None else torch.maximum(so_far, amax)


def largest(x: torch.Tensor, axis: int) -> torch.Tensor:
    """The largest |x| along an axis, exact. On a CPU integers find it: without the sign, the bits of floating-point
    numbers are in the order of their sizes, NaN beyond infinity."""
    if x.is_cuda:
        found: torch.Tensor = torch.linalg.vector_norm(x, math.inf, axis)
        return found
    integers, bits = SIZES[x.element_size()]
    return (x.view(integers) & bits).amax(axis).view(x.dtype)
