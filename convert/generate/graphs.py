"""Passes of one token of each sequence, which a GPU records once and then repeats without being told what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...plugins.kernels import power_of_two
from .cache import KeyValueCache
from .passes import Pass, Piece, SingleTokens

# Hidden states behind the last layer, [1, tokens, hidden_size], of a pass and its ids [1, tokens].
Compute = Callable[[Pass, torch.Tensor], torch.Tensor]
# So many rows are recorded at most.
MOST_ROWS = 256


@dataclass
class Recording:
    """A pass of some rows.

    Attributes:
        ids: int64 [1, rows]; these and the pass's tensors are overwritten before it is repeated.
        moves: of the cache, when the pass was computed last without being recorded.
        graph: None until it comes a second time over the cache as it lies.
        hidden: what that makes.
    """

    now: SingleTokens
    ids: torch.Tensor
    moves: int = -1
    graph: torch.cuda.CUDAGraph | None = None
    hidden: torch.Tensor | None = None


class Graphs:
    """The recordings of one network, by their number of rows: a power of two, of which some may belong to nobody."""

    def __init__(self, compute: Compute, cache: KeyValueCache, device: torch.device):
        self.compute, self.cache, self.device = compute, cache, device
        self.recordings: dict[int, Recording] = {}

    def takes(self, pieces: Sequence[Piece]) -> bool:
        """Whether a pass is one that can be recorded."""
        return len(pieces) <= MOST_ROWS and all(piece.count == 1 for piece in pieces)

    def __call__(self, pieces: Sequence[Piece], ids: Sequence[int]) -> torch.Tensor:
        """Hidden states [tokens, hidden_size], valid until the next pass."""
        rows = power_of_two(len(pieces))
        if rows not in self.recordings:
            blank = torch.zeros(1, rows, dtype=torch.long, device=self.device)
            self.recordings[rows] = Recording(SingleTokens(rows, self.device), blank)
        recording = self.recordings[rows]
        recording.now.take(pieces)
        recording.ids[0, : len(ids)].copy_(torch.tensor(ids))
        self.cache.begin(recording.now)
        if recording.moves != self.cache.moves:  # kernels may be compiled for its size, and its rooms made
            recording.moves, recording.graph = self.cache.moves, None
            return self.compute(recording.now, recording.ids)[0, : len(ids)]
        if recording.graph is None:
            recording.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recording.graph):
                recording.hidden = self.compute(recording.now, recording.ids)
        recording.graph.replay()
        assert recording.hidden is not None
        return recording.hidden[0, : len(ids)]
