"""The KV cache and attention over it as PyTorch operators: numbers, PyTorch's own checks, compiled layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from enginesmith.plugins import gpt_attention, operators_attention
from enginesmith.plugins.gpt_attention import Heads

from .kv_caches import (
    ARGUMENTS,
    DEVICE,
    HEADS,
    KV_HEADS,
    QUANTIZED,
    SCALES,
    SIZE,
    bits,
    cache,
    drawn,
    numbers,
    tables,
    to_attend,
    to_store,
)

OPS = torch.ops.enginesmith
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CACHES = [*QUANTIZED, None]
ADDED: list[dict[str, Any]] = [
    {},
    {"scale": 0.3},
    {"window": 1},
    {"window": 5, "cap": 2.0},
    {"slopes": torch.tensor([0.5, 0.25, 0.1, 0.01], device=DEVICE)},
]


@pytest.mark.parametrize("kept", CACHES)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_pytorchs_own_checks_pass(name: str, kept: torch.dtype | None) -> None:
    given = ARGUMENTS[name](torch.float16, kept or torch.float16)
    shapes = ("test_faketensor",)  # PyTorch compares no numbers of e4m3
    utils = {"test_utils": shapes} if kept == torch.float8_e4m3fn else {}
    torch.library.opcheck(getattr(OPS, name).default, (), given, **utils)
    torch.library.opcheck(getattr(OPS, name).default, tuple(given.values()), **utils)


def stored_by_hand(given: dict[str, Any], interleaved: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Queries and the cache, token by token."""
    of = Heads(HEADS, KV_HEADS, SIZE, 1.0, interleaved=interleaved)
    at, kept = given["places"].cpu(), [given[name].cpu().clone() for name in ("keys", "values")]
    qkv, cos, sin = (given[name].cpu() for name in ("qkv", "cos", "sin"))
    q, *made = gpt_attention.split(qkv[None], cos[at], sin[at], of)
    for token, (place, slot) in enumerate(zip(at.tolist(), given["slots"].tolist(), strict=True)):
        for held, x, scale in zip(kept, made, SCALES.cpu(), strict=True):
            kind = operators_attention.KINDS.get(held.dtype)
            one = x[0, :, token] if kind is None else gpt_attention.stored(x[0, :, token], scale, kind)
            if slot >= 0:
                held[slot, :, place] = one.to(held.dtype)
    return q[0].transpose(0, 1).to(qkv.dtype), kept


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated", [SIZE, SIZE // 2, 0])
@pytest.mark.parametrize("kept", CACHES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_stored(dtype: torch.dtype, kept: torch.dtype | None, rotated: int, interleaved: bool) -> None:
    """To the bit, and nothing elsewhere."""
    given = to_store(dtype, kept or dtype)
    given["cos"], given["sin"] = tables(rotated)
    q, expected = stored_by_hand(given, interleaved)
    got = OPS.kv_cache_store(**given, interleaved=interleaved)
    assert torch.equal(bits(got), bits(q))
    for name, theirs in zip(("keys", "values"), expected, strict=True):
        assert torch.equal(bits(given[name]), bits(theirs))


def softmax_attention(given: dict[str, Any], added: dict[str, Any]) -> torch.Tensor:
    """Plain, in float64."""
    factor, cap, window, slopes = (added.get(name) for name in ("scale", "cap", "window", "slopes"))
    kept = [given[name].cpu().double() for name in ("keys", "values")]
    if given["kv_scales"] is not None:
        kept = [held * scale for held, scale in zip(kept, SCALES.cpu().double(), strict=True)]
    out = torch.zeros(len(given["q"]), HEADS, SIZE, dtype=torch.float64)
    for token, (slot, length) in enumerate(zip(given["slots"].tolist(), given["lengths"].tolist(), strict=True)):
        for head in range(HEADS if slot >= 0 else 0):
            first = max(0, length - (window or length))
            k, v = (held[slot, head * KV_HEADS // HEADS, first:length] for held in kept)
            scores = k @ given["q"][token, head].cpu().double() * (factor or SIZE**-0.5)
            scores = scores if cap is None else cap * torch.tanh(scores / cap)
            if slopes is not None:
                scores = scores - float(slopes[head]) * (length - 1 - torch.arange(first, length))
            out[token, head] = scores.softmax(0) @ v
    return out.flatten(1)


@pytest.mark.parametrize("added", ADDED, ids=lambda added: "+".join(added) or "plain")
@pytest.mark.parametrize("kept", CACHES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_that_of_plain_softmax(dtype: torch.dtype, kept: torch.dtype | None, added: Any) -> None:
    given = to_attend(dtype, kept or dtype)
    got, expected = OPS.kv_cache_attention(**given, **added), softmax_attention(given, added)
    assert got.dtype == dtype
    assert not got[3:].any()
    step = torch.finfo(dtype).eps / 2 * expected.abs()
    assert bool(((got.cpu().double() - expected).abs() <= 1.01 * step + 5e-5).all())


@pytest.mark.parametrize("kept", CACHES)
def test_kernels_compute_the_same(kept: torch.dtype | None) -> None:
    """Those that operators are on a GPU, interpreted elsewhere."""
    pytest.importorskip("triton")
    from enginesmith.plugins import gpt_attention_triton

    kind = operators_attention.KINDS.get(kept) if kept else None
    of, (one, other) = Heads(HEADS, KV_HEADS, SIZE, SIZE**-0.5), (to_store(kept=kept or torch.float16) for _ in "ab")
    got = OPS.kv_cache_store(**one)
    *rest, scales = other.values()
    assert torch.equal(got, gpt_attention_triton.store(*rest, of, scales, kind))
    for name in ("keys", "values"):
        assert torch.equal(bits(one[name]), bits(other[name]))
    *rest, scales = to_attend(kept=kept or torch.float16).values()
    theirs = gpt_attention_triton.decode(*rest, of, scales, kind)
    assert torch.allclose(OPS.kv_cache_attention(*rest, scales), theirs, rtol=2**-10, atol=1e-4)


def test_no_tokens() -> None:
    """Where a pass has none of a kind."""
    given, before = to_store(), cache(torch.int8)
    given |= {"qkv": given["qkv"][:0], "places": numbers(), "slots": numbers()}
    q = OPS.kv_cache_store(**given)
    assert q.shape == (0, HEADS, SIZE)
    assert torch.equal(given["keys"], before[0])
    attended = OPS.kv_cache_attention(q, *before, numbers(), numbers(), SCALES)
    assert attended.shape == (0, HEADS * SIZE)


def test_qkv_may_be_part_of_a_matrix() -> None:
    """And nothing else of it matters."""
    one, other = to_store(), to_store()
    other["qkv"] = torch.cat((other["qkv"], other["qkv"]), 1)[:, : one["qkv"].shape[1]]
    other["places"] = torch.stack((other["places"], other["places"]), 1)[:, 0]
    assert torch.equal(OPS.kv_cache_store(**one), OPS.kv_cache_store(**other))
    assert torch.equal(one["keys"], other["keys"])


class Layer(torch.nn.Module):
    """Attention of a user's model that generates: it owns the cache, and adds what the pass brings."""

    def __init__(self, kept: torch.dtype) -> None:
        super().__init__()
        self.cos, self.sin = tables()
        for name, held in zip(("keys", "values"), cache(kept), strict=True):
            self.register_buffer(name, torch.zeros_like(held))
        self.scales = SCALES if kept in QUANTIZED else None

    def forward(self, qkv: torch.Tensor, places: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        q = OPS.kv_cache_store(qkv, self.cos, self.sin, places, slots, self.keys, self.values, self.scales)
        out: torch.Tensor = OPS.kv_cache_attention(q, self.keys, self.values, slots, places + 1, self.scales)
        return out


def assert_generates(layer: Any, plain: Layer, kept: list[torch.Tensor]) -> None:
    """Token by token the same as a layer that is not compiled, and the same cache."""
    for place in range(4):
        qkv = drawn(2, (HEADS + 2 * KV_HEADS) * SIZE, seed=place)
        now = qkv, numbers(place, place), numbers(1, 0)
        out = layer(*now)
        assert torch.equal(out, plain(*now))
        for held, theirs in zip(kept, (plain.keys, plain.values), strict=True):
            assert torch.equal(bits(held), bits(theirs))
    assert bool(out.any())


BACKEND = "inductor" if DEVICE == "cuda" else "aot_eager"


@pytest.mark.parametrize("kept", [torch.int8, torch.float8_e4m3fn, torch.float16])
def test_a_compiled_layer_keeps_its_cache(kept: torch.dtype) -> None:
    layer = Layer(kept)
    assert_generates(torch.compile(layer, fullgraph=True, backend=BACKEND), Layer(kept), [layer.keys, layer.values])


@pytest.mark.parametrize("kept", [torch.int8, torch.float16])
def test_an_exported_layer_keeps_its_cache(kept: torch.dtype) -> None:
    given = drawn(3, (HEADS + 2 * KV_HEADS) * SIZE), numbers(0, 0, 0), numbers(0, 1, 2)
    dynamic = {0: torch.export.Dim("tokens", min=1, max=64)}
    program = torch.export.export(Layer(kept), given, dynamic_shapes=(dynamic,) * 3)
    module = program.run_decompositions({}).module()  # mutation as functions, which is what backends take
    buffers = dict(module.named_buffers())
    assert_generates(module, Layer(kept), [buffers["keys"], buffers["values"]])


def test_a_layer_attends_as_whole_sequences_do() -> None:
    """What is stored token by token is what ``gpt_attention.reference`` sees."""
    layer, (cos, sin) = Layer(torch.int8), tables()
    qkv = drawn(1, 6, (HEADS + 2 * KV_HEADS) * SIZE)
    of = Heads(HEADS, KV_HEADS, SIZE, SIZE**-0.5)
    whole = gpt_attention.reference(qkv.cpu(), cos[:6].cpu(), sin[:6].cpu(), of, ("INT8", SCALES.cpu()))
    for place in range(6):
        got = layer(qkv[:, place], numbers(place), numbers(1))
        assert torch.allclose(got.cpu(), whole[:, place], atol=2e-3)


@pytest.mark.gpu
def test_a_layer_is_captured_in_a_cuda_graph() -> None:
    layer, plain = Layer(torch.int8), Layer(torch.int8)
    qkv, places, slots = drawn(2, (HEADS + 2 * KV_HEADS) * SIZE), numbers(0, 0), numbers(1, 0)
    layer(qkv, places, slots)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(qkv, places, slots)
    for place in range(5):
        qkv.copy_(drawn(2, (HEADS + 2 * KV_HEADS) * SIZE, seed=place))
        places.fill_(place)
        graph.replay()
        assert torch.equal(out, plain(qkv, places, slots))
    assert torch.equal(layer.keys, plain.keys)
