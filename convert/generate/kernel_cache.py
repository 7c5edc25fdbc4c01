"""The KV cache on a GPU with kernels: one launch writes what a pass brings, two attend from all its single tokens.

Pieces of more tokens are attended to one by one: with PyTorch's fused attention in the runtime's dtype where nothing
but causality is added to scores, otherwise as ``cache`` does. A pass of single tokens alone asks the GPU nothing and
depends on the host in nothing but their number and the cache's room.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from ...plugins import kernels
from ..models.model import Model
from ..models.rotary import Turns
from .cache import KeyValueCache, KvCache
from .passes import Piece


def cache_of(model: Model, turns: Turns, dtype: torch.dtype, device: torch.device) -> KeyValueCache:
    """The cache of a device; a CPU holds numbers of the runtime's dtype as float32, which it computes with."""
    if device.type == "cuda" and kernels.available(device.index or 0):
        return KernelCache(model, turns, dtype, device)
    return KeyValueCache(model, turns, torch.float32 if device.type == "cpu" else dtype, device)


class KernelCache(KeyValueCache):
    """As ``KeyValueCache``; dtype is the runtime's."""

    def __init__(self, model: Model, turns: Turns, dtype: torch.dtype, device: torch.device):
        super().__init__(model, turns, dtype, device)
        self.heads = [replace(of, slopes=None if of.slopes is None else of.slopes.to(device)) for of in self.heads]

    def attend(self, index: int, qkv: torch.Tensor, kv_cache: KvCache | None) -> torch.Tensor:
        """As ``Runtime.attend``; qkv: [1, tokens, ...]."""
        from ...plugins import gpt_attention_triton

        now, heads, held = self.now, self.heads[index], self.layer(index, kv_cache)
        kind, scales = (None, None) if kv_cache is None else kv_cache
        cos, sin = self.turns.of(index)
        q = gpt_attention_triton.store(qkv[0], cos, sin, now.places, now.slots, *held, heads, scales, kind)
        made: list[tuple[slice | torch.Tensor, torch.Tensor]] = [
            (rows, self.of_piece(index, piece, q[rows].transpose(0, 1), kv_cache).transpose(0, 1).flatten(1))
            for piece, rows in now.longer
        ]
        if len(now.pieces) == len(made) == 1:
            return made[0][1][None]
        if len(now.pieces) > len(made) or not made:
            where = now.slots[now.single], now.lengths[now.single]
            single = gpt_attention_triton.decode(q[now.single], *held, *where, heads, scales, kind)
            if not made:
                return single[None]
            made.append((now.single, single))
        done = qkv.new_empty(len(q), heads.heads * heads.size)
        for rows, attended in made:
            done[rows] = attended
        return done[None]

    def of_piece(self, index: int, piece: Piece, q: torch.Tensor, kv_cache: KvCache | None) -> torch.Tensor:
        heads = self.heads[index]
        if heads.cap is not None or not heads.plain(piece.end):
            return super().of_piece(index, piece, q.float(), kv_cache).to(q.dtype)
        k, v = (x.to(q.dtype)[None] for x in self.read(index, piece, kv_cache))
        first, grouped = piece.first == 0, heads.heads != heads.kv_heads
        mask = None if first else causal_lower_right(piece.count, piece.end)
        attended: torch.Tensor = scaled_dot_product_attention(
            q[None], k, v, mask, is_causal=first, scale=heads.scale, enable_gqa=grouped
        )
        return attended[0]
