"""What calibration learns of one decoder layer: one set of statistics per linear input.

The hidden states of all calibration tokens go through the layer in place, a batch at a time. Every
algorithm reads the same statistics afterwards; none asks for another forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from ..models.dimensions import Model
from ..models.forward import MAKES, NORMS, READS, LayerForward
from ..numbers.gram import add_inputs, mirror
from ..numbers.inputs import InputStatistics
from .wanted import Wanted

# Tokens kept of every calibration sequence, beside the one with the largest activation.
KEPT_PER_SEQUENCE = 4


@dataclass
class LayerStatistics:
    """Statistics of one decoder layer.

    Attributes:
        inputs: by group name.
        output_amax: the largest |output| of each linear's channels, float32 [out], by Hugging Face part; empty unless
            asked for.
        stream_amax: the largest |hidden state| that each norm reads, by TensorRT-LLM name; empty unless asked for.
        key_amax: float32 [kv_size], of the keys after the rotary embedding; None unless asked for.
        value_amax: float32 [kv_size], of the values; None unless asked for.
        query_amax: float32 [query_size], of the queries before the rotary embedding; None unless asked for.
        hidden_amax: the largest |hidden state| behind the layer (before it, where hidden states stay).
    """

    inputs: dict[str, InputStatistics]
    output_amax: dict[str, torch.Tensor] = field(default_factory=dict)
    stream_amax: dict[str, float] = field(default_factory=dict)
    key_amax: torch.Tensor | None = None
    value_amax: torch.Tensor | None = None
    query_amax: torch.Tensor | None = None
    hidden_amax: float = 0.0

    def only(self, wanted: Wanted) -> LayerStatistics:
        """What one algorithm wants of statistics that were gathered for several: the same as if gathered for it."""
        inputs = self.inputs if wanted.inputs else {}
        if not wanted.gram:
            inputs = {name: replace(of, gram=None, magnitude=None) for name, of in inputs.items()}
        seen = replace(self, inputs=inputs)
        if not wanted.outputs:
            seen = replace(seen, output_amax={}, stream_amax={})
        return seen if wanted.cache else replace(seen, key_amax=None, value_amax=None, query_amax=None)


class _InputWatcher:
    """Accumulates the statistics of one linear input over the batches of a pass."""

    def __init__(self, kept: torch.Tensor, gram: bool):
        self.kept = kept  # [sequences, KEPT_PER_SEQUENCE] token positions
        self.wants_gram = gram
        self.gram: torch.Tensor | None = None
        self.magnitude: torch.Tensor | float = 0.0
        self.seen = 0
        self.amax: list[torch.Tensor] = []
        self.tokens: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor) -> None:
        batch, _, width = x.shape
        size = x.abs()
        self.amax.append(size.amax(1).float())
        largest = size.amax(2).argmax(1, keepdim=True)
        positions = torch.cat((self.kept[self.seen : self.seen + batch], largest), 1)
        rows = positions[..., None].expand(-1, -1, width)
        self.tokens.append(x.gather(1, rows).reshape(-1, width).float())
        self.seen += batch
        if self.wants_gram:
            rows = x.reshape(-1, width)
            if self.gram is None:
                self.gram = rows.new_zeros(width, width, dtype=torch.float32)
            add_inputs(self.gram, rows)
            self.magnitude = size.sum((0, 1), dtype=torch.float32) + self.magnitude

    def statistics(self, tokens_per_sequence: int) -> InputStatistics:
        kept = self.kept.shape[1]
        stands_for = torch.full((self.seen, kept + 1), (tokens_per_sequence - 1) / kept)
        stands_for[:, -1] = 1
        amax, tokens = torch.cat(self.amax), torch.cat(self.tokens)
        weight = stands_for.flatten().to(tokens.device)
        if not self.wants_gram:
            return InputStatistics(amax, tokens, weight)
        assert self.gram is not None
        assert isinstance(self.magnitude, torch.Tensor)
        count = self.seen * tokens_per_sequence
        return InputStatistics(amax, tokens, weight, mirror(self.gram).div_(count), self.magnitude / count)


def calibrate_layer(
    layer: LayerForward,
    hidden: torch.Tensor,
    model: Model,
    wanted: Wanted,
    seed: int,
    batch: int,
    on_batch: Callable[[int], None] = lambda tokens: None,
    stay: bool = False,
) -> LayerStatistics:
    """Advance all hidden states by one layer and gather its statistics.

    Args:
        layer: the layer, its weights loaded.
        hidden: [sequences, tokens, hidden_size], replaced in place by the layer's output unless it is to stay.
        stay: leave the hidden states as they are, and compute nothing behind the last linear's input.
        seed: draws the kept tokens; the same for every layer.
        batch: sequences per forward pass.
        on_batch: called with the number of tokens done after each batch.
    """
    sequences, length, _ = hidden.shape
    draw = torch.Generator().manual_seed(seed)
    kept = torch.randint(length, (sequences, KEPT_PER_SEQUENCE), generator=draw).to(hidden.device)
    watchers: dict[str, _InputWatcher] = {}
    if wanted.inputs:
        for group in model.family.groups:
            watchers[group.name] = _InputWatcher(kept, wanted.gram)
            layer.watch(READS, group.linears[0], watchers[group.name])
    outputs: dict[str, torch.Tensor] = {}
    stream: dict[str, float] = {}
    if wanted.outputs:
        for part in (part for linear in model.family.linears for part in linear.parts):
            layer.watch(MAKES, part, partial(_see_output, outputs, part))
        for norm in model.family.norms:
            layer.watch(NORMS, norm.name, partial(_see_stream, stream, norm.name))
    ranges = _CacheRanges(layer) if wanted.cache else None
    if stay:
        layer.watch(READS, model.family.groups[-1].linears[0], _end_pass)
    try:
        for start in range(0, sequences, batch):
            piece = hidden[start : start + batch]
            with suppress(_PassEnds):
                hidden[start : start + batch] = layer(piece.to(layer.device, layer.dtype)).to(hidden.device)
            on_batch(piece.shape[0] * length)
    finally:
        layer.watchers.clear()
    inputs = {name: watcher.statistics(length) for name, watcher in watchers.items()}
    if ranges is None:
        return LayerStatistics(inputs, outputs, stream)
    return LayerStatistics(inputs, outputs, stream, ranges.key, ranges.value, ranges.query)


class _PassEnds(Exception):
    """All that a pass was for has been seen."""


def _end_pass(x: torch.Tensor) -> None:
    raise _PassEnds


def _see_output(outputs: dict[str, torch.Tensor], part: str, y: torch.Tensor) -> None:
    outputs[part] = _running_amax(outputs.get(part), y)


def _see_stream(stream: dict[str, float], norm: str, x: torch.Tensor) -> None:
    stream[norm] = max(stream.get(norm, 0.0), float(torch.maximum(x.max(), -x.min())))


class _CacheRanges:
    """Largest |key| (after the rotary embedding) and |value| per channel, which a KV cache holds, and |query|."""

    def __init__(self, layer: LayerForward):
        self.layer = layer
        self.key: torch.Tensor | None = None
        self.value: torch.Tensor | None = None
        self.query: torch.Tensor | None = None
        for part, see in zip(layer.family.attention, (self.see_query, self.see_key, self.see_value), strict=True):
            layer.watch(MAKES, part, see)

    def see_key(self, key: torch.Tensor) -> None:
        self.key = _running_amax(self.key, self.layer.rotate(key))

    def see_value(self, value: torch.Tensor) -> None:
        self.value = _running_amax(self.value, value)

    def see_query(self, query: torch.Tensor) -> None:
        self.query = _running_amax(self.query, self.layer.before_rotation(query))


def _running_amax(so_far: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    amax = x.abs().flatten(0, -2).amax(0).float()
    return amax if so_far is None else torch.maximum(so_far, amax)
