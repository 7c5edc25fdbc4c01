"""GPTAttention, as far as quantization touches it: rotary embedding, the KV cache, causal attention."""

from __future__ import annotations

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


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding in the NeoX order (channel i pairs with i + d/2). x: [..., tokens, d]; cos, sin: [tokens, d]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def cached(x: torch.Tensor, scale: torch.Tensor, kind: str) -> torch.Tensor:
    """What the KV cache gives back of x: INT8 rounds x / scale; FP8 casts it to e4m3. scale: float32 [1]."""
    if kind == "INT8":
        return int8.saturate(x / scale).float() * scale
    return fp8.saturate(x / scale).float() * scale


def reference(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    heads: int,
    kv_heads: int,
    kv_cache: tuple[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Causal attention over whole sequences, every key and value read back from the cache.

    An engine's context phase attends to keys and values before they are quantized; generation reads the
    cache. Here all reads come from the cache, which is what generated tokens see.

    Args:
        qkv: [batch, tokens, (heads + 2 * kv_heads) * d] in the engine's dtype.
        cos, sin: float32 [tokens, d].
        kv_cache: (kind, float32 [1] scale) of a quantized cache.

    Returns:
        [batch, tokens, heads * d] in qkv's dtype.
    """
    batch, tokens, _ = qkv.shape
    d = cos.shape[-1]
    q, k, v = (
        part.float().view(batch, tokens, -1, d).transpose(1, 2)
        for part in qkv.split([heads * d, kv_heads * d, kv_heads * d], -1)
    )
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    q, k = q.to(qkv.dtype).float(), k.to(qkv.dtype).float()
    if kv_cache is not None:
        kind, scale = kv_cache
        k, v = cached(k, scale, kind), cached(v, scale, kind)
    k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return attended.transpose(1, 2).reshape(batch, tokens, heads * d).to(qkv.dtype)
