"""GPTAttention, as far as quantization touches it: rotary embedding, the KV cache, causal attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import fp8, int8
from .identity import Plugin
from .lazy import torch

# The fields that quantization sets; the plugin has many more.
PLUGIN = Plugin(
    "GPTAttention",
    ("num_heads", "num_kv_heads", "head_size", "kv_cache_quant_mode"),
    "gpt_attention_plugin",
    "attention",
)


@dataclass(frozen=True)
class Heads:
    """What an attention computes.

    Attributes:
        heads, kv_heads, size: of queries, of keys and values, and channels of each.
        scale: what scores q k' are multiplied by.
        cap: scores become cap * tanh(score / cap).
        window: tokens that each token attends to, itself among them; None for all before it.
        slopes: ALiBi's, float32 [heads]: scores fall by slope * distance (Press et al. 2021, "Train Short, Test Long").
        interleaved: the rotary embedding turns channel 2i with 2i + 1; otherwise i with i + d/2.
        causal: tokens attend to those before them alone.
    """

    heads: int
    kv_heads: int
    size: int
    scale: float
    cap: float | None = None
    window: int | None = None
    slopes: torch.Tensor | None = None
    interleaved: bool = False
    causal: bool = True

    def plain(self, tokens: int) -> bool:
        """Whether nothing but causality is added to scores of so many tokens."""
        return self.slopes is None and (self.window is None or tokens <= self.window)

    def bias(self, places: torch.Tensor, keys: int) -> torch.Tensor:
        """What is added to scaled scores; -inf where nothing is seen.

        Args:
            places: of queries in their sequences, int64 [batch, queries].
            keys: tokens of each sequence, from its first on.

        Returns:
            float32 [batch, 1 or heads, queries, keys].
        """
        distance = (places[..., None] - torch.arange(keys, device=places.device))[:, None]
        bias = torch.zeros_like(distance, dtype=torch.float32)
        if self.slopes is not None:
            bias = -self.slopes.to(places.device)[:, None, None] * distance
        hidden = distance < 0 if self.causal else torch.zeros_like(distance, dtype=torch.bool)
        if self.window is not None:
            hidden = hidden | (distance >= self.window)
        return bias.masked_fill(hidden, -math.inf)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    """Rotary embedding: channel i pairs with i + r/2, or 2i with 2i + 1; channels behind the first r stay.

    Args:
        x: [..., tokens, d].
        cos, sin: [tokens, r], each angle twice, where its channels are.
    """
    rotated = cos.shape[-1]
    if rotated < x.shape[-1]:
        return torch.cat((rotate(x[..., :rotated], cos, sin, interleaved), x[..., rotated:]), -1)
    if interleaved:
        crossed = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    else:
        first, second = x.chunk(2, -1)
        crossed = torch.cat((-second, first), -1)
    return x * cos + crossed * sin


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, of: Heads) -> torch.Tensor:
    """softmax(scale q k' + bias) v; q: [batch, heads, tokens, d]; k, v: [batch, kv heads, tokens, d]. q's shape."""
    tokens, grouped = q.shape[2], q.shape[1] != k.shape[1]
    places = torch.arange(tokens, device=q.device)[None]
    if of.cap is not None:
        bias = of.bias(places, tokens)[0]
        return torch.stack([attend_from(bias, *one, of) for one in zip(q, k, v, strict=True)])
    mask = None if of.plain(tokens) else of.bias(places, tokens).to(q.dtype)
    causal = mask is None and of.causal and tokens > 1
    attended: torch.Tensor = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=of.scale, enable_gqa=grouped
    )
    return attended


def attend_from(bias: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, of: Heads) -> torch.Tensor:
    """``attend`` of queries that stand anywhere in one sequence of which all keys are given.

    Args:
        bias: as ``Heads.bias`` gives it, [1 or heads, queries, keys].
        q: [heads, queries, d].
        k, v: [kv heads, keys, d].

    Returns:
        [heads, queries, d].
    """
    together = q.reshape(len(k), -1, q.shape[2])  # queries that read the same keys
    scores = (torch.bmm(together, k.transpose(1, 2)) * of.scale).float().view(*q.shape[:2], -1)
    if of.cap is not None:
        scores = of.cap * torch.tanh(scores / of.cap)
    weights = (scores + bias).softmax(-1).to(v.dtype)
    return torch.bmm(weights.view(len(k), -1, k.shape[1]), v).view(q.shape)


def attend_to_all(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, of: Heads) -> torch.Tensor:
    """``attend_from`` of one query that sees every key, with nothing added: [heads, 1, d]."""
    if of.cap is not None:
        return attend_from(q.new_zeros(1, 1, 1), q, k, v, of)
    together = q.reshape(1, len(k), -1, q.shape[2])  # queries that read the same keys
    attended: torch.Tensor = torch.nn.functional.scaled_dot_product_attention(
        together, k[None], v[None], scale=of.scale
    )
    return attended.reshape(q.shape)


def stored(x: torch.Tensor, scale: torch.Tensor, kind: str) -> torch.Tensor:
    """What the KV cache holds of x: INT8 rounds x / scale; FP8 casts it to e4m3. scale: float32 []."""
    return int8.saturate(x / scale) if kind == "INT8" else fp8.saturate(x / scale)


def stored_dtype(kind: str) -> torch.dtype:
    """Of what ``stored`` gives."""
    return torch.int8 if kind == "INT8" else torch.float8_e4m3fn


def restored(held: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What the KV cache gives back, float32."""
    return held.float() * scale


def split(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, of: Heads
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries and keys behind the rotary embedding, and values, float32, all as qkv's dtype holds them.

    Args:
        qkv: [batch, tokens, (heads + 2 * kv_heads) * d].
        cos, sin: float32 [tokens, r], as for ``rotate``.

    Returns:
        q: [batch, heads, tokens, d]; k, v: [batch, kv heads, tokens, d].
    """
    heads = qkv.float().view(*qkv.shape[:2], of.heads + 2 * of.kv_heads, of.size).transpose(1, 2)
    turned = rotate(heads[:, : of.heads + of.kv_heads], cos, sin, of.interleaved).to(qkv.dtype).float()
    return turned[:, : of.heads], turned[:, of.heads :], heads[:, of.heads + of.kv_heads :]


def reference(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    of: Heads,
    kv_cache: tuple[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Attention over whole sequences, every key and value read back from the cache.

    An engine's context phase attends to keys and values before they are quantized; generation reads the
    cache. Here all reads come from the cache, which is what generated tokens see.

    Args:
        qkv, cos, sin: as for ``split``, in the engine's dtype.
        kv_cache: (kind, float32 scale) of a quantized cache; [1], or [2] where keys and values have their own.

    Returns:
        [batch, tokens, heads * d] in qkv's dtype.
    """
    q, k, v = split(qkv, cos, sin, of)
    if kv_cache is not None:
        kind, scale = kv_cache
        k, v = (restored(stored(x, scale[which], kind), scale[which]) for x, which in ((k, 0), (v, -1)))
    k, v = (x.repeat_interleave(of.heads // of.kv_heads, 1) for x in (k, v))
    return attend(q, k, v, of).transpose(1, 2).reshape(*qkv.shape[:2], -1).to(qkv.dtype)
