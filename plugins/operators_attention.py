"""The KV cache and attention of single tokens over it, as PyTorch operators; ``operators`` registers them too.

A cache is two tensors [slots, kv heads, room, d] that users make: a slot a sequence, room for its tokens. It holds what
their dtype says: int8, e4m3, or numbers as qkv is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import kv_cache
from .gpt_attention import Heads
from .operator_arguments import OR_FLOAT32, Rule, is_like, is_matrix
from .operator_registration import operator

# What ``gpt_attention`` calls caches of these dtypes.
KINDS = {torch.int8: "INT8", torch.float8_e4m3fn: "FP8"}
# Channels of a head that kernels hold; numbers of one head in one slot that they can count.
MOST_CHANNELS, MOST_NUMBERS = 256, 2**31


def is_cache(t: Tensor, x: Tensor) -> bool:
    if t.dtype not in (*KINDS, x.dtype) or t.dim() != 4 or t.numel() == 0 or not t.is_contiguous():
        return False
    return t.shape[3] <= MOST_CHANNELS and t.shape[2] * t.shape[3] < MOST_NUMBERS


def query_heads(qkv: Tensor, keys: Tensor) -> int:
    return qkv.shape[1] // keys.shape[3] - 2 * keys.shape[1]


def are_heads(heads: int, keys: Tensor) -> bool:
    """Whether so many queries share keys evenly."""
    return heads > 0 and heads % keys.shape[1] == 0


def is_qkv(t: Tensor, keys: Tensor) -> bool:
    whole = is_matrix(t, OR_FLOAT32) and t.shape[1] % keys.shape[3] == 0
    return whole and are_heads(query_heads(t, keys), keys)


def is_queries(t: Tensor, keys: Tensor) -> bool:
    shaped = t.dtype in OR_FLOAT32 and t.dim() == 3 and t.shape[2] == keys.shape[3]
    return shaped and are_heads(t.shape[1], keys)


def is_table(t: Tensor, keys: Tensor) -> bool:
    return t.dtype == torch.float32 and t.dim() == 2 and t.shape[1] % 2 == 0 and t.shape[1] <= keys.shape[3]


def counts(t: Tensor, x: Tensor, end: int, first: int | None = None) -> bool:
    """Whether there is one integer a token, before end and not before first; a GPU is not asked for its numbers."""
    if t.dtype not in (torch.int32, torch.int64) or tuple(t.shape) != (len(x),):
        return False
    return t.device.type != "cpu" or bool((t < end).all() and (first is None or (t >= first).all()))


def are_scales(t: Tensor | None, keys: Tensor) -> bool:
    if keys.dtype not in KINDS:
        return t is None
    return t is not None and t.dtype == torch.float32 and tuple(t.shape) in ((1,), (2,))


def is_number(value: float | None, least: float = -math.inf) -> bool:
    return value is None or least < value < math.inf


# In the order in which they can be told: others depend on the cache's shape.
CACHE: dict[str, Rule] = {
    "keys": (
        f"contiguous [slots, kv heads, room, d] of the first one's dtype, int8 or e4m3, d up to {MOST_CHANNELS},",
        lambda t, x, _: is_cache(t, x),
    ),
    "values": (
        "keys' shape and dtype, contiguous, in memory of their own,",
        lambda t, x, given: (
            is_like(t, given["keys"]) and t.is_contiguous() and t.data_ptr() != given["keys"].data_ptr()
        ),
    ),
    "qkv": (
        "float16, bfloat16 or float32 [tokens, (heads + 2 * kv heads) * d], heads a multiple of kv heads,",
        lambda t, x, given: is_qkv(t, given["keys"]),
    ),
    "q": (
        "float16, bfloat16 or float32 [tokens, heads, d], heads a multiple of kv heads,",
        lambda t, x, given: is_queries(t, given["keys"]),
    ),
    "cos": ("float32 [places, r], r even and d at most,", lambda t, x, given: is_table(t, given["keys"])),
    "sin": ("cos's shape and dtype", lambda t, x, given: is_like(t, given["cos"])),
    "places": (
        "int32 or int64 [tokens], each from 0 on and before the end of cos and of the cache's room,",
        lambda t, x, given: counts(t, x, min(given["keys"].shape[2], len(given["cos"])), 0),
    ),
    "slots": (
        "int32 or int64 [tokens], each one of the cache or negative,",
        lambda t, x, given: counts(t, x, len(given["keys"])),
    ),
    "lengths": (
        "int32 or int64 [tokens], each from 0 to the cache's room,",
        lambda t, x, given: counts(t, x, given["keys"].shape[2] + 1, 0),
    ),
    "kv_scales": (
        "float32 [1] or [2] for a cache of int8 or e4m3, None for another,",
        lambda t, x, given: are_scales(t, given["keys"]),
    ),
    "scale": ("a finite number or None", lambda value, x, _: is_number(value)),
    "window": ("1 or more or None", lambda value, x, _: is_number(value, 0)),
    "cap": ("a finite number above 0 or None", lambda value, x, _: is_number(value, 0)),
    "slopes": (
        "float32 [heads] or None",
        lambda t, x, _: t is None or (t.dtype == torch.float32 and t.shape == x.shape[1:2]),
    ),
    "interleaved": ("True or False", lambda value, x, _: isinstance(value, bool)),
}


@operator(
    "kv_cache_store",
    lambda qkv, cos, sin, places, slots, keys, *_, **__: qkv.new_empty(
        (qkv.shape[0], query_heads(qkv, keys), keys.shape[3])
    ),
    CACHE,
    mutates=("keys", "values"),
)
def _kv_cache_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    places: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    kv_scales: Tensor | None = None,
    interleaved: bool = False,
) -> Tensor:
    """Queries behind the rotary embedding [tokens, heads, d]; keys and values go into the cache, quantized for it."""
    kv_heads, size = keys.shape[1], keys.shape[3]
    of = Heads(query_heads(qkv, keys), kv_heads, size, 1.0, interleaved=interleaved)
    return kv_cache.store(qkv, cos, sin, places, slots, keys, values, of, kv_scales, KINDS.get(keys.dtype))


@operator("kv_cache_attention", lambda q, *_, **__: q.new_empty((q.shape[0], q.shape[1] * q.shape[2])), CACHE)
def _kv_cache_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    lengths: Tensor,
    kv_scales: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k') v over the first ``length`` tokens of each one's slot, [tokens, heads * d]."""
    (_, heads, size), factor = q.shape, q.shape[2] ** -0.5 if scale is None else scale
    of = Heads(heads, keys.shape[1], size, factor, cap, window, slopes)
    return kv_cache.decode(q, keys, values, slots, lengths, of, kv_scales, KINDS.get(keys.dtype))
