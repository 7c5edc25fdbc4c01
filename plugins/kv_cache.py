"""The KV cache and attention of single tokens over it, as ``gpt_attention`` computes both; kernels do so on a GPU."""

from __future__ import annotations

from . import gpt_attention
from .gpt_attention import Heads
from .kernels import beside
from .lazy import torch


def reference_store(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    places: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    of: Heads,
    scales: torch.Tensor | None = None,
    kind: str | None = None,
) -> torch.Tensor:
    """Queries behind the rotary embedding, [tokens, heads, d] in qkv's dtype; keys and values go into the cache.

    Args:
        qkv: [tokens, (heads + 2 * kv_heads) * d].
        cos, sin: float32 [longest, r], as for ``gpt_attention.rotate``, of every place that may come.
        places: of tokens in their sequences, int32 or int64 [tokens].
        slots: of their sequences in the cache, likewise; nothing is written for a token whose slot is negative.
        keys, values: the cache, [slots, kv heads, room, d]: int8, e4m3, or a float dtype.
        scales: float32 [1], or [2] where keys and values have their own, of a quantized cache.
        kind: "INT8" or "FP8" for such, as ``gpt_attention.stored`` has it.
    """
    places, kept = places.long(), slots >= 0
    q, *made = gpt_attention.split(qkv[None], cos[places], sin[places], of)
    for held, x, which in zip((keys, values), made, (0, -1), strict=True):
        x = x.to(held.dtype) if scales is None or kind is None else gpt_attention.stored(x, scales[which], kind)
        bytes_of(held)[slots[kept].long(), :, places[kept]] = bytes_of(x)[0].transpose(0, 1)[kept]
    return q[0].transpose(0, 1).to(qkv.dtype)


def reference_decode(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    of: Heads,
    scales: torch.Tensor | None = None,
    kind: str | None = None,
) -> torch.Tensor:
    """Attention of the last token of each of some sequences to all that the cache holds of it, [tokens, heads * d].

    Args:
        q: [tokens, heads, d], as ``reference_store`` gives it.
        keys, values, scales, kind: as for ``reference_store``; read as held * scale.
        slots: of the sequences, int32 or int64 [tokens].
        lengths: of the sequences with these tokens, likewise; zeros come out for a length of zero or a negative slot.
    """
    out = q.new_zeros(len(q), of.heads * of.size)
    factors = torch.ones(1, device=q.device) if scales is None else scales
    for row, (slot, length) in enumerate(zip(slots.tolist(), lengths.tolist(), strict=True)):
        if slot >= 0 and length > 0:
            k = gpt_attention.restored(keys[slot, :, :length], factors[0])
            v = gpt_attention.restored(values[slot, :, :length], factors[-1])
            out[row] = attended(q[row, :, None].float(), k, v, of).flatten()
    return out


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, of: Heads) -> torch.Tensor:
    """Attention of the last token of a sequence of which all keys are given: as ``attend_from``, [heads, 1, d]."""
    length = k.shape[1]
    if of.plain(length):
        return gpt_attention.attend_to_all(q, k, v, of)
    last = torch.tensor([[length - 1]], device=q.device)
    return gpt_attention.attend_from(of.bias(last, length)[0], q, k, v, of)


def bytes_of(held: torch.Tensor) -> torch.Tensor:
    """The same memory in a dtype that PyTorch can move; it does not move e4m3 by index."""
    return held.view(torch.int8) if held.dtype == torch.float8_e4m3fn else held


store = beside(reference_store, "gpt_attention_triton", "store")
decode = beside(reference_decode, "gpt_attention_triton", "decode")
