"""The KV cache and attention over it by kernels, beside the references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from enginesmith.convert.generate.kernel_cache import KernelCache
from enginesmith.convert.generate.network import Network
from enginesmith.convert.generate.passes import Pass, Piece, SingleTokens
from enginesmith.convert.prove.folder import FloatFolder
from enginesmith.convert.prove.proven import opened
from enginesmith.plugins import gpt_attention
from enginesmith.plugins.gpt_attention import Heads

from .family_models import converted, write_family
from .generating import answered, assert_as_computed_anew, prompts

pytest.importorskip("triton")
from enginesmith.plugins import gpt_attention_triton as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32)
KINDS = (None, "INT8", "FP8")
SLOTS, ROOM = 5, 320


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def tables(longest: int, rotated: int, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.outer(torch.arange(longest).float(), 10000 ** -(torch.arange(0, rotated, 2) / rotated))
    angles = angles.repeat_interleave(2, -1) if interleaved else torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def empty(of: Heads, kind: str | None, dtype: torch.dtype, room: int = ROOM) -> tuple[torch.Tensor, torch.Tensor]:
    held = dtype if kind is None else torch.int8 if kind == "INT8" else torch.float8_e4m3fn
    return tuple(torch.zeros(SLOTS, of.kv_heads, room, of.size, dtype=held) for _ in range(2))  # type: ignore[return-value]


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.cpu().contiguous().view(torch.uint8)


def assert_stored(
    qkv: torch.Tensor, of: Heads, rotated: int, kind: str | None, scales: torch.Tensor, places: torch.Tensor
) -> None:
    """store writes what split and stored make, and nothing elsewhere."""
    tokens, (cos, sin) = len(qkv), tables(ROOM, rotated, of.interleaved)
    slots = torch.arange(tokens).flip(0) % SLOTS
    expected, cache = empty(of, kind, qkv.dtype), [x.to(DEVICE) for x in empty(of, kind, qkv.dtype)]
    q, *made = gpt_attention.split(qkv[None], cos[places], sin[places], of)
    for held, x, which in zip(expected, made, (0, -1), strict=True):
        x = x.to(qkv.dtype) if kind is None else gpt_attention.stored(x, scales[which], kind)
        held.view(torch.int8 if kind else qkv.dtype)[slots, :, places] = x.view(torch.int8 if kind else qkv.dtype)[
            0
        ].transpose(0, 1)
    moved = (x.to(DEVICE) for x in (qkv, cos, sin, places, slots))
    turned = kernels.store(*moved, *cache, of, None if kind is None else scales.to(DEVICE), kind)
    assert torch.equal(bits(turned), bits(q[0].transpose(0, 1).to(qkv.dtype)))
    for held, theirs in zip(cache, expected, strict=True):
        assert torch.equal(bits(held), bits(theirs))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "rotated", "interleaved"),
    [(4, 2, 64, 64, False), (5, 1, 80, 32, False), (3, 3, 96, 96, True), (8, 1, 32, 16, True), (9, 3, 256, 256, False)],
)
def test_store(
    heads: int, kv_heads: int, size: int, rotated: int, interleaved: bool, kind: str | None, dtype: torch.dtype
) -> None:
    of = Heads(heads, kv_heads, size, 0.1, interleaved=interleaved)
    qkv = drawn(7, (heads + 2 * kv_heads) * size, scale=3.0).to(dtype)
    assert_stored(qkv, of, rotated, kind, torch.tensor([0.021, 0.047]), torch.tensor([0, 1, 7, 63, 64, 200, 319]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_store_saturates_and_keeps_zeros_and_small_numbers(kind: str | None, dtype: torch.dtype) -> None:
    """One scale for both, numbers over the whole range of both grids, halves between their steps, and zeros."""
    of = Heads(2, 2, 64, 0.1)
    powers = 2.0 ** (torch.arange(6 * 64) % 34 - 20)
    qkv = torch.stack((powers, -powers, drawn(6 * 64) * powers, torch.arange(384) / 2 - 96, torch.zeros(384)))
    places = torch.tensor([0, 0, 5, 9, 100], dtype=torch.int32)
    assert_stored(qkv.to(dtype), of, 64, kind, torch.tensor([1.0]), places.long())
    assert_stored(qkv.to(dtype), of, 64, kind, torch.tensor([2.0**-9]), places.long())


def test_a_token_of_no_slot_writes_nothing() -> None:
    of, cache = Heads(2, 1, 32, 0.1), [x.to(DEVICE) for x in empty(Heads(2, 1, 32, 0.1), None, torch.float16)]
    cos, sin = (x.to(DEVICE) for x in tables(ROOM, 32, False))
    qkv, none = drawn(1, 4 * 32).half().to(DEVICE), torch.tensor([-1], device=DEVICE)
    kernels.store(qkv, cos, sin, torch.tensor([0], device=DEVICE), none, *cache, of)
    assert not any(bool(held.any()) for held in cache)
    zero = torch.tensor([0], device=DEVICE)
    assert not bool(kernels.decode(qkv.view(1, 4, 32)[:, :2], *cache, none, zero, of).any())


def filled(of: Heads, kind: str | None, dtype: torch.dtype, scales: torch.Tensor) -> list[torch.Tensor]:
    """A cache that is full of random numbers."""
    made = [drawn(SLOTS, of.kv_heads, ROOM, of.size, seed=n).to(dtype) for n in (1, 2)]
    if kind is None:
        return made
    return [gpt_attention.stored(x.float(), scales[n], kind) for x, n in zip(made, (0, -1), strict=True)]


def expected(
    q: torch.Tensor, cache: list[torch.Tensor], slots: list[int], lengths: list[int], of: Heads, scales: torch.Tensor
) -> torch.Tensor:
    """attend_from of every token by itself, float32 [tokens, heads * d]."""
    rows = []
    for own, slot, length in zip(q.float(), slots, lengths, strict=True):
        k, v = (held[slot, :, :length].float() * scale for held, scale in zip(cache, scales, strict=True))
        bias = of.bias(torch.tensor([[length - 1]]), length)[0]
        rows.append(gpt_attention.attend_from(bias, own[:, None], k, v, of).flatten())
    return torch.stack(rows)


def assert_decoded(of: Heads, kind: str | None, dtype: torch.dtype, lengths: list[int], sharp: float = 1.0) -> None:
    scales = torch.ones(2) if kind is None else torch.tensor([0.02, 0.03])
    cache, slots = filled(of, kind, dtype, scales), [(3 * n + 1) % SLOTS for n in range(len(lengths))]
    q = drawn(len(lengths), of.heads, of.size, seed=3, scale=sharp).to(dtype)
    on_device = replace(of, slopes=None if of.slopes is None else of.slopes.to(DEVICE))
    moved = (x.to(DEVICE) for x in (q, *cache, torch.tensor(slots), torch.tensor(lengths, dtype=torch.int32)))
    out = kernels.decode(*moved, on_device, None if kind is None else scales.to(DEVICE), kind).cpu()
    theirs = expected(q, cache, slots, lengths, of, scales)
    assert out.dtype == dtype
    step = torch.finfo(dtype).eps / 2 * theirs.abs()
    assert bool(((out.float() - theirs).abs() <= step * 1.01 + 5e-5).all()), (out.float() - theirs).abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_decode(kind: str | None, dtype: torch.dtype) -> None:
    assert_decoded(Heads(4, 2, 64, 0.125), kind, dtype, [1, 2, 63, 64, 65, 127, 128, 129, 200, 320], 2.0)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (8, 1), (20, 1), (71, 1)])
@pytest.mark.parametrize("size", [32, 80, 96, 128, 256])
def test_decode_of_sizes_and_groups(heads: int, kv_heads: int, size: int) -> None:
    if DEVICE == "cpu" and heads > 8 and size != 80:
        pytest.skip("long on a CPU")
    assert_decoded(Heads(heads, kv_heads, size, size**-0.5), None, torch.float16, [5, 130])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "what",
    [
        {"cap": 3.0},
        {"window": 1},
        {"window": 70},
        {"window": 150, "cap": 20.0},
        {"slopes": torch.tensor([0.5, 0.25, 0.1, 0.001])},
        {"window": 1000},
    ],
)
def test_decode_with_what_is_added(what: dict[str, object], kind: str | None) -> None:
    assert_decoded(Heads(4, 2, 32, 0.2, **what), kind, torch.bfloat16, [1, 69, 71, 160, 311], 4.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", HALF)
def test_decode_is_the_same_whatever_is_beside(dtype: torch.dtype) -> None:
    """Alone, in a batch, in another slot, and in a cache of more room."""
    of = Heads(4, 2, 64, 0.125)
    k, v = (x.to(DEVICE) for x in filled(of, None, dtype, torch.ones(2)))
    q = drawn(3, 4, 64, seed=3).to(dtype).to(DEVICE)
    slots, lengths = (torch.tensor(x, device=DEVICE) for x in ([4, 0, 2], [150, 1, 320]))
    together = kernels.decode(q, k, v, slots, lengths, of)
    wider = [torch.nn.functional.pad(x.flip(0), (0, 0, 0, 4000)) for x in (k, v)]
    for n in range(3):
        alone = kernels.decode(q[n : n + 1], *wider, SLOTS - 1 - slots[n : n + 1], lengths[n : n + 1], of)
        assert torch.equal(bits(alone[0]), bits(together[n]))


def test_chunks_of_long_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """More keys than chunks of the least size hold."""
    of, room = Heads(2, 1, 32, 0.2), 4500
    k, v = (drawn(1, 1, room, 32, seed=n).half() for n in (1, 2))
    q = drawn(3, 2, 32, seed=3).half()
    lengths = [4096, 4097, 4500]
    moved = (x.to(DEVICE) for x in (q, k, v, torch.zeros(3, dtype=torch.int32), torch.tensor(lengths)))
    out = kernels.decode(*moved, of).cpu().float()
    assert torch.allclose(out, expected(q, [k, v], [0] * 3, lengths, of, torch.ones(2)), atol=1e-4, rtol=1e-3)


LLAMA = "Llama, Yi, DeepSeek-LLM, SmolLM"


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginesmith.convert.generate.network.cache_of", KernelCache)
    monkeypatch.setattr("enginesmith.convert.generate.flight.PROMPT_TOKENS", 7)


@pytest.mark.usefixtures("with_kernels")
@pytest.mark.parametrize("kv_cache", KINDS)
def test_generation(kv_cache: str | None, models: Callable[[str], Path], tmp_path: Path) -> None:
    converted(models(LLAMA), tmp_path / "ck", kv_cache=kv_cache)
    proven: Any = opened(tmp_path / "ck")
    asked = prompts(proven.model.vocab_size)
    assert_as_computed_anew(proven, answered(proven, asked, 6, device=torch.device(DEVICE)))


@pytest.mark.usefixtures("with_kernels")
@pytest.mark.parametrize("title", ["Gemma 2", "Gemma 3, text", "BLOOM, BLOOMZ", "GPT-J"])
def test_generation_by_what_is_added_to_scores(title: str, tmp_path: Path) -> None:
    window = {"sliding_window": 6} if "Gemma" in title else {}
    proven = FloatFolder(write_family(tmp_path / "hf", title, **window))
    asked = prompts(proven.model.vocab_size, (3, 10))
    assert_as_computed_anew(proven, answered(proven, asked, 6, device=torch.device(DEVICE)))


def whole_pass(cache: KernelCache, now: Pass, qkv: torch.Tensor) -> torch.Tensor:
    cache.begin(now)
    return cache.attend(0, qkv, None)[0]


@pytest.mark.usefixtures("with_kernels")
@pytest.mark.parametrize("title", [LLAMA, "Gemma 2", "BLOOM, BLOOMZ"])
def test_a_prompt_alone_keeps_its_dtype(title: str, tmp_path: Path) -> None:
    """Whatever is added to scores, and whatever is beside it."""
    window = {"sliding_window": 6} if title == "Gemma 2" else {}
    network = Network(
        FloatFolder(write_family(tmp_path / "hf", title, **window), torch.float16), torch.device(DEVICE), 40
    )
    cache, model = network.cache, network.model
    assert isinstance(cache, KernelCache)
    channels = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_size
    qkv = drawn(1, 9, channels).to(DEVICE, torch.float16)
    alone = whole_pass(cache, Pass([Piece(0, 0, 8)], cache.device), qkv[:, :8])
    beside = whole_pass(cache, Pass([Piece(0, 0, 8), Piece(1, 0, 1)], cache.device), qkv)
    assert alone.dtype == beside.dtype == torch.float16
    assert torch.equal(alone, beside[:8])


@pytest.mark.usefixtures("with_kernels")
def test_a_pass_over_tensors_that_stay(models: Callable[[str], Path]) -> None:
    """What goes on in the same tensors is what passes of their own compute; rows of no sequence change nothing."""
    device = torch.device(DEVICE)
    network = Network(FloatFolder(models(LLAMA)), device, 40)
    cache, model = network.cache, network.model
    assert isinstance(cache, KernelCache)
    channels = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_size
    steady = SingleTokens(3, device)
    held = steady.places.data_ptr(), steady.slots.data_ptr(), steady.lengths.data_ptr()
    for step in range(3):
        qkv = drawn(1, 3, channels, seed=step).to(device)
        pieces = [Piece(1, step, 1), Piece(0, step, 1)]
        alone = whole_pass(cache, Pass(pieces, device), qkv[:, :2])
        steady.take(pieces)
        together = whole_pass(cache, steady, qkv)
        assert torch.equal(together[:2], alone)
        assert not bool(together[2].any())
        assert held == (steady.places.data_ptr(), steady.slots.data_ptr(), steady.lengths.data_ptr())
    assert cache.moves == 1
    whole_pass(cache, Pass([Piece(0, 64, 1)], device), qkv[:, :1])
    assert cache.moves == 2


@pytest.mark.gpu
def test_a_recorded_pass_is_played_for_other_places(models: Callable[[str], Path]) -> None:
    device = torch.device("cuda")
    network = Network(FloatFolder(models(LLAMA)), device, 64)
    cache, model = network.cache, network.model
    channels = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_size
    qkv, steady = drawn(1, 2, channels).to(device), SingleTokens(2, device)
    steady.take([Piece(0, 0, 1), Piece(1, 0, 1)])
    cache.begin(steady)
    cache.attend(0, qkv, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = cache.attend(0, qkv, None)
    for place in range(1, 40):
        qkv.copy_(drawn(1, 2, channels, seed=place))
        pieces = [Piece(1, place, 1), Piece(0, place, 1)]
        steady.take(pieces)
        graph.replay()
        played = out.clone()
        cache.begin(Pass(pieces, device))
        assert torch.equal(played, cache.attend(0, qkv, None))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_decode_of_a_large_model(kind: str | None) -> None:
    assert_decoded(Heads(32, 8, 128, 128**-0.5), kind, torch.bfloat16, [*range(1, 321, 7)], 2.0)
