"""What goes through the layers together: pieces of sequences, and where their tokens stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...plugins.gpt_attention import Heads


@dataclass(frozen=True)
class Piece:
    """New tokens of one sequence.

    Attributes:
        slot: of the sequence in the cache.
        first: place of the first of them in the sequence.
        count: of them.
    """

    slot: int
    first: int
    count: int

    @property
    def end(self) -> int:
        """Tokens of the sequence with them."""
        return self.first + self.count


class Pass:
    """Pieces that go through the layers together, one behind the other in one row of hidden states.

    Args:
        pieces: of sequences.

    Attributes:
        places: of every token in its sequence, int64 [tokens].
        slots: of its sequence in the cache, likewise.
        lengths: of its sequence up to and with it, likewise.
        longer: the pieces of more than one token, with their rows.
        single: rows of the other pieces: all, or int64 [pieces].
    """

    single: slice | torch.Tensor

    def __init__(self, pieces: Sequence[Piece], device: torch.device):
        self.pieces, self.device = pieces, device
        self.places, self.slots, self.lengths = torch.tensor(columns(pieces), dtype=torch.long, device=device)
        self.longer, single, start = list[tuple[Piece, slice]](), list[int](), 0
        for piece in pieces:
            if piece.count == 1:
                single.append(start)
            else:
                self.longer.append((piece, slice(start, start + piece.count)))
            start += piece.count
        self.single = torch.tensor(single, dtype=torch.long, device=device) if self.longer else slice(None)
        self.turns: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.biases: dict[tuple[int, int | None], torch.Tensor] = {}

    def turned(self, tables: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of the pass's tokens; layers share their tables."""
        cos, sin = tables
        if id(cos) not in self.turns:
            self.turns[id(cos)] = cos[self.places], sin[self.places]
        return self.turns[id(cos)]

    def bias(self, piece: Piece, heads: Heads) -> torch.Tensor:
        """What is added to scores of a piece, [1 or heads, tokens, keys]; layers of one window share it."""
        key = piece.slot, heads.window
        if key not in self.biases:
            places = torch.arange(piece.first, piece.end, device=self.device)[None]
            self.biases[key] = heads.bias(places, piece.end)[0]
        return self.biases[key]


class SingleTokens(Pass):
    """A pass of one token of each of some sequences, whose tensors stay where they are while sequences go on: what a
    GPU has recorded of one such pass it computes for the next.

    Args:
        most: rows of the pass. Those beyond the pieces belong to no sequence: slot -1, length 0.
    """

    def __init__(self, most: int, device: torch.device):
        super().__init__([], device)
        self.table = torch.zeros(3, most, dtype=torch.long, device=device)
        self.places, self.slots, self.lengths = self.table
        self.take([])

    def take(self, pieces: Sequence[Piece]) -> None:
        """The pieces that are next, each of one token."""
        self.pieces = pieces
        rest = self.table.shape[1] - len(pieces)
        filled = [column + [none] * rest for column, none in zip(columns(pieces), (0, -1, 0), strict=True)]
        self.table.copy_(torch.tensor(filled))


def columns(pieces: Sequence[Piece]) -> tuple[list[int], list[int], list[int]]:
    """Of every token its place, its sequence's slot, and the tokens of the sequence up to and with it."""
    places = [place for piece in pieces for place in range(piece.first, piece.end)]
    return places, [p.slot for p in pieces for _ in range(p.count)], [place + 1 for place in places]
