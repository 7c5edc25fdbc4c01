"""The KV cache of sequences that are being generated, and attention over it.

Keys and values are held as the checkpoint says (INT8, FP8, or the runtime's dtype), and every one of them is read back
from there, also by the token that brought it. Each sequence is attended to by itself, so that what is beside it changes
nothing. ``kernel_cache`` does the same with kernels.
"""

from __future__ import annotations

import torch

from ...plugins import gpt_attention
from ...plugins.kv_cache import bytes_of
from ..models.attention import heads_of
from ..models.model import Model
from ..models.rotary import Turns
from .passes import Pass, Piece

KvCache = tuple[str, torch.Tensor]
# Room for tokens comes in steps of so many; for sequences in so many at most beyond those that need it.
LEAST_TOKENS, MORE_SLOTS = 64, 8


class KeyValueCache:
    """Keys and values of every layer, [slots, kv heads, tokens, head_size]; it grows as it is needed.

    Args:
        turns: of the rotary embedding, for the longest sequence that may come.
        dtype: of keys and values that are not quantized; it holds the numbers of the runtime's.

    Attributes:
        moves: how often memory has moved; what was recorded of passes before is of no use.
    """

    def __init__(self, model: Model, turns: Turns, dtype: torch.dtype, device: torch.device):
        self.model, self.turns, self.dtype, self.device = model, turns, dtype, device
        self.heads = [heads_of(model, index) for index in range(model.num_hidden_layers)]
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.slots = self.tokens = self.moves = 0
        self.now: Pass

    def begin(self, now: Pass) -> None:
        """The pass that layers are about to compute."""
        self.now = now
        self.make_room(max(piece.slot for piece in now.pieces) + 1, max(piece.end for piece in now.pieces))

    def make_room(self, slots: int, tokens: int) -> None:
        """For so many sequences, of so many tokens, and some beyond."""
        if slots > self.slots or tokens > self.tokens:
            if slots > self.slots:
                slots = max(slots, min(2 * self.slots, slots + MORE_SLOTS))
            if tokens > self.tokens:
                tokens = max(-(-tokens // LEAST_TOKENS) * LEAST_TOKENS, self.tokens * 3 // 2)
            slots, tokens = max(slots, self.slots), max(tokens, self.tokens)
            self.kept = [(self.larger(k, slots, tokens), self.larger(v, slots, tokens)) for k, v in self.kept]
            self.slots, self.tokens, self.moves = slots, tokens, self.moves + 1

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
        self.kept, self.slots, self.tokens, self.moves = [], 0, 0, self.moves + 1

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(held.nbytes for pair in self.kept for held in pair)

    def layer(self, index: int, kv_cache: KvCache | None) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values; its first pass makes their room."""
        if len(self.kept) <= index:
            dtype = self.dtype if kv_cache is None else gpt_attention.stored_dtype(kv_cache[0])
            k_room, v_room = (self.room(dtype, self.slots, self.tokens) for _ in range(2))
            self.kept.append((k_room, v_room))
        return self.kept[index]

    def attend(self, index: int, qkv: torch.Tensor, kv_cache: KvCache | None) -> torch.Tensor:
        """Attention of the pass's tokens over their sequences; as ``Runtime.attend``, qkv [1, tokens, ...]."""
        now, heads = self.now, self.heads[index]
        cos, sin = now.turned(self.turns.of(index))
        q, k, v = gpt_attention.split(qkv, cos, sin, heads)
        self.keep(index, k, v, kv_cache)
        done, start = [], 0
        for piece in now.pieces:
            own = q[0, :, start : start + piece.count]
            start += piece.count
            done.append(self.of_piece(index, piece, own, kv_cache).transpose(0, 1).flatten(1))
        return torch.cat(done)[None].to(qkv.dtype)

    def of_piece(self, index: int, piece: Piece, q: torch.Tensor, kv_cache: KvCache | None) -> torch.Tensor:
        """Attention of some tokens of a sequence, [heads, tokens, d] as q, in whose dtype it is computed."""
        heads, (k, v) = self.heads[index], (x.to(q.dtype) for x in self.read(index, piece, kv_cache))
        if piece.first == 0:
            return gpt_attention.attend(q[None], k[None], v[None], heads)[0]
        if piece.count == 1 and heads.plain(piece.end):
            return gpt_attention.attend_to_all(q, k, v, heads)
        return gpt_attention.attend_from(self.now.bias(piece, heads), q, k, v, heads)

    def keep(self, index: int, k: torch.Tensor, v: torch.Tensor, kv_cache: KvCache | None) -> None:
        """Write the pass's keys and values, float32 [1, kv heads, tokens, d]."""
        for held, x, which in zip(self.layer(index, kv_cache), (k, v), (0, -1), strict=True):
            made = x.to(self.dtype) if kv_cache is None else gpt_attention.stored(x, kv_cache[1][which], kv_cache[0])
            bytes_of(held)[self.now.slots, :, self.now.places] = bytes_of(made)[0].transpose(0, 1)

    def read(self, index: int, piece: Piece, kv_cache: KvCache | None) -> list[torch.Tensor]:
        """Keys and values of a piece's sequence as the cache gives them back, [kv heads, tokens, d]."""
        both = [held[piece.slot, :, : piece.end] for held in self.kept[index]]
        if kv_cache is None:
            return both
        return [gpt_attention.restored(held, kv_cache[1][which]) for held, which in zip(both, (0, -1), strict=True)]
