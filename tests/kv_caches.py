"""Arguments of the operators that store in a KV cache and attend to it."""

from __future__ import annotations

from typing import Any

import torch

from enginesmith.plugins import gpt_attention, operators_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS, KV_HEADS, SIZE, SLOTS, ROOM, LONGEST = 4, 2, 32, 3, 12, 10
QUANTIZED = (torch.int8, torch.float8_e4m3fn)
SCALES = torch.tensor([0.02, 0.03], device=DEVICE)


def drawn(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def numbers(*values: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def tables(rotated: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.outer(torch.arange(LONGEST), 10000 ** -(torch.arange(0, rotated, 2) / max(rotated, 1)))
    return angles.cos().repeat(1, 2).to(DEVICE), angles.sin().repeat(1, 2).to(DEVICE)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.detach().cpu().contiguous().view(torch.uint8)


def cache(dtype: torch.dtype) -> list[torch.Tensor]:
    """Full of numbers."""
    made = [drawn(SLOTS, KV_HEADS, ROOM, SIZE, dtype=torch.float32, seed=n) for n in (1, 2)]
    if dtype not in QUANTIZED:
        return [x.to(dtype) for x in made]
    kind = operators_attention.KINDS[dtype]
    return [gpt_attention.stored(x, scale, kind) for x, scale in zip(made, SCALES, strict=True)]


def to_store(dtype: torch.dtype = torch.float16, kept: torch.dtype = torch.int8) -> dict[str, Any]:
    """Arguments of ``kv_cache_store``: tokens of two sequences and of none."""
    cos, sin = tables()
    keys, values = cache(kept)
    return {
        "qkv": drawn(4, (HEADS + 2 * KV_HEADS) * SIZE, dtype=dtype, seed=3),
        "cos": cos,
        "sin": sin,
        "places": numbers(0, 9, 5, 0),
        "slots": numbers(2, 0, 0, -1, dtype=torch.int32),
        "keys": keys,
        "values": values,
        "kv_scales": SCALES if kept in QUANTIZED else None,
    }


def to_attend(dtype: torch.dtype = torch.float16, kept: torch.dtype = torch.int8) -> dict[str, Any]:
    """Arguments of ``kv_cache_attention``: of three sequences, of an empty one, and of none."""
    keys, values = cache(kept)
    return {
        "q": drawn(5, HEADS, SIZE, dtype=dtype, seed=4),
        "keys": keys,
        "values": values,
        "slots": numbers(2, 0, 1, 1, -1),
        "lengths": numbers(12, 1, 7, 0, 3, dtype=torch.int32),
        "kv_scales": SCALES if kept in QUANTIZED else None,
    }


ARGUMENTS = {"kv_cache_store": to_store, "kv_cache_attention": to_attend}
