"""What operators and kernels of the KV cache do with what does not fit it: refuse it, or leave memory alone."""

from __future__ import annotations

import math

import pytest
import torch

from enginesmith.plugins import operators_attention
from enginesmith.plugins.gpt_attention import Heads

from .kv_caches import (
    ARGUMENTS,
    DEVICE,
    HEADS,
    KV_HEADS,
    LONGEST,
    ROOM,
    SCALES,
    SIZE,
    SLOTS,
    numbers,
    tables,
    to_attend,
    to_store,
)

OPS = torch.ops.enginesmith


@pytest.mark.parametrize(("place", "slot"), [(ROOM, 0), (-1, 0), (LONGEST, -2), (2**40, 0), (0, SLOTS), (0, 2**40)])
def test_kernels_write_nothing_outside_of_a_cache(place: int, slot: int) -> None:
    """Nor read outside of tables: operators on a GPU do not look at numbers beforehand."""
    pytest.importorskip("triton")
    from enginesmith.plugins import gpt_attention_triton

    given = to_store() | {"places": numbers(place, 1, 2, 3), "slots": numbers(slot, 1, 1, 1)}
    whole = [torch.cat([x.new_zeros(x.shape)] * 3) for x in (given["keys"], given["values"])]
    given["keys"], given["values"] = (x[SLOTS : 2 * SLOTS] for x in whole)
    padded = (torch.nn.functional.pad(x, (0, 0, 20, 20), value=math.nan) for x in tables())
    given["cos"], given["sin"] = (x[20:-20] for x in padded)
    *rest, scales = given.values()
    q = gpt_attention_triton.store(*rest, Heads(HEADS, KV_HEADS, SIZE, 1.0), scales, "INT8")
    if not 0 <= place < LONGEST:
        assert torch.equal(q[0].flatten(), given["qkv"][0, : HEADS * SIZE])
    for held in whole:
        assert bool(held[SLOTS + 1, :, 1:4].any(-1).all())
        held[SLOTS + 1, :, 1:4] = 0
        assert not held.any()


@pytest.mark.parametrize(
    ("slot", "length", "read"), [(0, ROOM + 1, ROOM), (1, 2**40, ROOM), (SLOTS, 3, 0), (-1, 3, 0), (0, -5, 0)]
)
@pytest.mark.parametrize("window", [None, 4])
def test_kernels_read_nothing_outside_of_a_cache(slot: int, length: int, read: int, window: int | None) -> None:
    pytest.importorskip("triton")
    from enginesmith.plugins import gpt_attention_triton

    of, given = Heads(HEADS, KV_HEADS, SIZE, SIZE**-0.5, window=window), to_attend(kept=torch.float16)
    given = given | {"slots": numbers(1, slot, 0, 1, 2), "lengths": numbers(5, length, 1, 2, 3)}
    q, keys, values, slots, lengths, _ = given.values()
    beyond = torch.full_like(keys, math.nan)
    within = [torch.cat((beyond, x, beyond))[SLOTS : 2 * SLOTS] for x in (keys, values)]
    got = gpt_attention_triton.decode(q, *within, slots, lengths, of)
    slots[1], lengths[1] = slot if read else 0, read
    assert torch.equal(got, gpt_attention_triton.decode(q, keys, values, slots, lengths, of))


STORE, ATTENTION = to_store(), to_attend()
FLOAT = torch.zeros(SLOTS, KV_HEADS, ROOM, SIZE, device=DEVICE)
BAD_STORES: list[tuple[str, object, str]] = [
    ("qkv", STORE["qkv"].double(), "qkv is torch.float64"),
    ("qkv", STORE["qkv"][0], "qkv is .*; float16, bfloat16 or float32"),
    ("qkv", STORE["qkv"][:, : SIZE * 6 + 1], r"qkv is .*kv heads\) \* d\], heads a multiple of kv heads, is needed"),
    ("qkv", STORE["qkv"][:, :SIZE * 7], "qkv is .*heads a multiple of kv heads"),
    ("qkv", STORE["qkv"][:, :SIZE * 4], "qkv is .*heads a multiple of kv heads"),
    ("cos", STORE["cos"].half(), r"cos is torch.float16 .*; float32 \[places, r\], r even and d at most, is needed"),
    ("cos", STORE["cos"][:, 1:], "cos is"),
    ("cos", STORE["cos"].repeat(1, 2), "cos is"),
    ("cos", STORE["cos"][0], "cos is"),
    ("sin", STORE["sin"][1:], "sin is .*; cos's shape and dtype is needed"),
    ("places", STORE["places"].to(torch.int16), r"places is torch.int16 .*; int32 or int64 \[tokens\]"),
    ("places", STORE["places"][1:], "places is"),
    ("slots", STORE["slots"].float(), "slots is torch.float32"),
    ("slots", STORE["slots"][None], "slots is"),
    ("keys", STORE["keys"].to(torch.uint8), r"keys is torch.uint8 .*; contiguous \[slots, kv heads, room, d\] of"),
    ("keys", FLOAT, "keys is torch.float32 .* of the first one's dtype, int8 or e4m3, d up to 256, is needed"),
    ("keys", STORE["keys"][:, :, ::2], "keys is .*; contiguous"),
    ("keys", STORE["keys"][0], "keys is"),
    ("keys", STORE["keys"][:0], "keys is"),
    ("values", STORE["values"][:, :, 1:].contiguous(), "values is .*; keys' shape and dtype, contiguous, in"),
    ("values", None, "values is None; keys' shape"),
    ("slots", None, "slots is None"),
    ("values", STORE["values"].transpose(2, 3).contiguous().transpose(2, 3), "values is .*contiguous"),
    ("values", STORE["values"].to(torch.float8_e4m3fn), "values is torch.float8_e4m3fn"),
    ("kv_scales", None, "kv_scales is None; .* for a cache of int8 or e4m3, None for another, is needed"),
    ("kv_scales", SCALES.repeat(2), "kv_scales is"),
    ("kv_scales", SCALES.half(), "kv_scales is torch.float16"),
]  # fmt: skip
BAD_ATTENTIONS: list[tuple[str, object, str]] = [
    ("q", ATTENTION["q"].flatten(1), r"q is .*; float16, bfloat16 or float32 \[tokens, heads, d\]"),
    ("q", ATTENTION["q"][:, :3], "q is .*heads a multiple of kv heads, is needed"),
    ("q", ATTENTION["q"][:, :, :16], "q is"),
    ("q", ATTENTION["q"].to(torch.int8), "q is torch.int8"),
    ("keys", FLOAT, "keys is torch.float32"),
    ("keys", torch.zeros(1, 1, 1, 264, dtype=torch.int8, device=DEVICE), "keys is .*, d up to 256, is needed"),
    ("slots", ATTENTION["slots"][:1], "slots is .*; int32 or int64"),
    ("lengths", ATTENTION["lengths"].bool(), "lengths is torch.bool"),
    ("scale", math.inf, "scale is inf; a finite number or None is needed"),
    ("window", 0, "window is 0; 1 or more or None is needed"),
    ("cap", 0.0, "cap is 0.0; a finite number above 0 or None is needed"),
    ("cap", math.nan, "cap is nan"),
    ("slopes", torch.ones(KV_HEADS, device=DEVICE), r"slopes is .*; float32 \[heads\] or None is needed"),
    ("slopes", torch.ones(HEADS, device=DEVICE).half(), "slopes is torch.float16"),
    ("kv_scales", None, "kv_scales is None"),
]


@pytest.mark.parametrize(("name", "value", "said"), BAD_STORES)
def test_what_would_be_stored_wrong_is_refused(name: str, value: object, said: str) -> None:
    given = to_store()
    before = given["keys"].clone()
    with pytest.raises(ValueError, match=said):
        OPS.kv_cache_store(**given | {name: value})
    assert torch.equal(given["keys"], before)


def test_keys_and_values_are_two() -> None:
    given = to_store()
    with pytest.raises(ValueError, match=r"values is .*contiguous, in memory of their own, is needed"):
        OPS.kv_cache_store(**given | {"values": given["keys"]})


@pytest.mark.parametrize(("name", "value", "said"), BAD_ATTENTIONS)
def test_what_would_be_attended_to_wrong_is_refused(name: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OPS.kv_cache_attention(**to_attend() | {name: value})


def test_a_scale_is_of_a_quantized_cache() -> None:
    for name, arguments in ARGUMENTS.items():
        with pytest.raises(ValueError, match=r"kv_scales is .*None for another"):
            getattr(OPS, name)(**arguments(kept=torch.float16) | {"kv_scales": SCALES})


def test_a_head_is_no_larger_than_kernels_count() -> None:
    _, holds = operators_attention.CACHE["keys"]
    for room, fits in ((2**23 - 1, True), (2**23, False)):
        keys = torch.empty(1, 1, room, 256, dtype=torch.int8, device="meta")
        assert holds(keys, STORE["qkv"], {}) == fits


@pytest.mark.skipif(DEVICE == "cuda", reason="numbers of a GPU are not looked at")
@pytest.mark.parametrize(
    ("operator", "name", "value", "said"),
    [
        ("kv_cache_store", "places", numbers(0, LONGEST, 0, 0), "before the end of cos and of the cache's room"),
        ("kv_cache_store", "places", numbers(0, -1, 0, 0), "each from 0 on"),
        ("kv_cache_store", "slots", numbers(0, 0, SLOTS, 0), "each one of the cache or negative"),
        ("kv_cache_attention", "slots", numbers(0, 0, SLOTS, 0, 0), "each one of the cache or negative"),
        ("kv_cache_attention", "lengths", numbers(0, 0, 0, ROOM + 1, 0), "each from 0 to the cache's room"),
        ("kv_cache_attention", "lengths", numbers(0, 0, 0, -1, 0), "each from 0 to the cache's room"),
    ],
)
def test_numbers_outside_of_a_cache_are_refused(operator: str, name: str, value: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*{said}"):
        getattr(OPS, operator)(**ARGUMENTS[operator]() | {name: value})


def test_places_end_where_the_cache_does() -> None:
    given = to_store()
    given["cos"], given["sin"] = (table.repeat(2, 1) for table in tables())
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="places is"):
            OPS.kv_cache_store(**given | {"places": numbers(0, ROOM, 0, 0)})
    OPS.kv_cache_store(**given | {"places": numbers(0, ROOM - 1, 0, 0)})
