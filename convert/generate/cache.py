"""The KV cache of sequences that are being generated, and attention over it.

A pass brings some new tokens of each of several sequences, one sequence behind the other in one row of hidden states.
Keys and values are held as the checkpoint says (INT8, FP8, or the runtime's dtype), and every one of them is read back
from there, also by the token that brought it. Each sequence is attended to by itself, so that what is beside it changes
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ...plugins import gpt_attention
from ...plugins.gpt_attention import Heads
from ..models.attention import heads_of
from ..models.model import Model
from ..models.rotary import Turns

KvCache = tuple[str, torch.Tensor]
# Room for tokens comes in steps of so many; for sequences in so many at most beyond those that need it.
LEAST_TOKENS, MORE_SLOTS = 64, 8


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


@dataclass(frozen=True)
class Pass:
    """The pieces that go through the layers together."""

    pieces: Sequence[Piece]
    device: torch.device
    turns: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    biases: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)

    @cached_property
    def places(self) -> torch.Tensor:
        """Of every token in its sequence, [tokens]."""
        places = [place for piece in self.pieces for place in range(piece.first, piece.end)]
        return torch.tensor(places, device=self.device)

    @cached_property
    def slots(self) -> torch.Tensor:
        """Of every token's sequence, [tokens]."""
        return torch.tensor([p.slot for p in self.pieces for _ in range(p.count)], device=self.device)

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


class KeyValueCache:
    """Keys and values of every layer, [slots, kv heads, tokens, head_size]; it grows as it is needed.

    One that is not quantized holds the numbers of the runtime's dtype, on a CPU as float32, which it computes with.

    Args:
        turns: of the rotary embedding, for the longest sequence that may come.
        dtype: the runtime's.
    """

    def __init__(self, model: Model, turns: Turns, dtype: torch.dtype, device: torch.device):
        self.model, self.turns, self.device = model, turns, device
        self.dtype = torch.float32 if device.type == "cpu" else dtype
        self.heads = [heads_of(model, index) for index in range(model.num_hidden_layers)]
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.slots = self.tokens = 0
        self.now: Pass

    def begin(self, now: Pass) -> None:
        """The pass that layers are about to compute."""
        self.now = now
        slots = max(piece.slot for piece in now.pieces) + 1
        tokens = max(piece.end for piece in now.pieces)
        if slots > self.slots or tokens > self.tokens:
            if slots > self.slots:
                slots = max(slots, min(2 * self.slots, slots + MORE_SLOTS))
            if tokens > self.tokens:
                tokens = max(-(-tokens // LEAST_TOKENS) * LEAST_TOKENS, self.tokens * 3 // 2)
            slots, tokens = max(slots, self.slots), max(tokens, self.tokens)
            self.kept = [(self.larger(k, slots, tokens), self.larger(v, slots, tokens)) for k, v in self.kept]
            self.slots, self.tokens = slots, tokens

    def larger(self, held: torch.Tensor, slots: int, tokens: int) -> torch.Tensor:
        """A layer's keys or values, with more room."""
        whole = self.room(held.dtype, slots, tokens)
        bytes_of(whole)[: held.shape[0], :, : held.shape[2]] = bytes_of(held)
        return whole

    def room(self, dtype: torch.dtype, slots: int, tokens: int) -> torch.Tensor:
        """Room for a layer's keys or values."""
        shape = (slots, self.model.num_key_value_heads, tokens, self.model.head_size)
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def move(self, source: int, slot: int) -> None:
        """A sequence takes another slot."""
        for pair in self.kept:
            for held in pair:
                bytes_of(held)[slot] = bytes_of(held)[source]

    def clear(self) -> None:
        """Forget every sequence, and give the memory back."""
        self.kept, self.slots, self.tokens = [], 0, 0

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(held.nbytes for pair in self.kept for held in pair)

    def attend(self, index: int, qkv: torch.Tensor, kv_cache: KvCache | None) -> torch.Tensor:
        """Attention of the pass's tokens over their sequences; as ``Runtime.attend``, qkv [1, tokens, ...]."""
        now, heads = self.now, self.heads[index]
        cos, sin = now.turned(self.turns.of(index))
        q, k, v = gpt_attention.split(qkv, cos, sin, heads)
        self.keep(index, k, v, kv_cache)
        keys, values = self.kept[index]
        done, start = [], 0
        for piece in now.pieces:
            own = q[0, :, start : start + piece.count]
            start += piece.count
            k = self.read(keys[piece.slot, :, : piece.end], 0, kv_cache)
            v = self.read(values[piece.slot, :, : piece.end], -1, kv_cache)
            done.append(self.of_piece(piece, own, k, v, heads).transpose(0, 1).flatten(1))
        return torch.cat(done)[None].to(qkv.dtype)

    def of_piece(self, piece: Piece, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: Heads) -> torch.Tensor:
        """Attention of some tokens of a sequence, [heads, tokens, d]; k, v: [kv heads, its tokens, d]."""
        if piece.first == 0:
            return gpt_attention.attend(q[None], k[None], v[None], heads)[0]
        if piece.count == 1 and heads.plain(piece.end):
            return gpt_attention.attend_to_all(q, k, v, heads)
        return gpt_attention.attend_from(self.now.bias(piece, heads), q, k, v, heads)

    def keep(self, index: int, k: torch.Tensor, v: torch.Tensor, kv_cache: KvCache | None) -> None:
        """Write the pass's keys and values, float32 [1, kv heads, tokens, d]."""
        made = [
            x.to(self.dtype) if kv_cache is None else gpt_attention.stored(x, kv_cache[1][which], kv_cache[0])
            for x, which in ((k, 0), (v, -1))
        ]
        if len(self.kept) <= index:
            k_room, v_room = (self.room(x.dtype, self.slots, self.tokens) for x in made)
            self.kept.append((k_room, v_room))
        for held, x in zip(self.kept[index], made, strict=True):
            bytes_of(held)[self.now.slots, :, self.now.places] = bytes_of(x)[0].transpose(0, 1)

    def read(self, held: torch.Tensor, which: int, kv_cache: KvCache | None) -> torch.Tensor:
        """What the cache gives back, float32."""
        return held.float() if kv_cache is None else gpt_attention.restored(held, kv_cache[1][which])


def bytes_of(held: torch.Tensor) -> torch.Tensor:
    """The same memory in a dtype that PyTorch can move; it does not move e4m3 by index."""
    return held.view(torch.int8) if held.dtype == torch.float8_e4m3fn else held
