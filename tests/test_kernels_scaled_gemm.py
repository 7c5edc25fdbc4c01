"""INT8 and FP8 products with scales: the kernels beside their references."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from enginesmith.plugins import fp8_rowwise_gemm, scaled_gemm_triton, smooth_quant_gemm
from enginesmith.plugins import scaled_gemm_schedules as schedules

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Tokens of every schedule, and sizes that fill no tile.
SHAPES = [(1, 24, 64), (1, 37, 100), (2, 16, 512), (4, 40, 48), (5, 33, 70), (16, 65, 528), (17, 24, 16), (70, 72, 144)]
LARGE = [
    *[(tokens, 4096, 1024) for tokens in (1, 4, 5, 16, 17, 65, 255, 1000, 8191, 16384)],
    *[(tokens, 1025, 1030) for tokens in (1, 3, 16, 33, 3000)],
    *[(tokens, 14336, 4096) for tokens in (1, 7, 300, 2049)],
]


def drawn(tokens: int, out: int, channels: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """x, weight, and scales from tiny to large, per token and per channel."""
    draw = torch.Generator().manual_seed(seed)
    x, weight = (torch.randint(-128, 128, (n, channels), dtype=torch.int8, generator=draw) for n in (tokens, out))
    scale_a, scale_b = (10.0 ** torch.empty(n).uniform_(-6, 0, generator=draw) for n in (tokens, out))
    return x, weight, scale_a[:, None], scale_b[None]


def assert_equal(
    x: torch.Tensor, weight: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor, dtype: torch.dtype, **more: int
) -> None:
    bias = torch.randn(len(weight), generator=torch.Generator().manual_seed(1)).to(dtype)
    moved = [one.to(DEVICE) for one in (x, weight, scale_a, scale_b)]
    for added in (None, bias):
        wanted = smooth_quant_gemm.reference(x, weight, scale_a, scale_b, dtype, added, **more)
        there = None if added is None else added.to(DEVICE)
        assert torch.equal(scaled_gemm_triton.run(*moved, dtype, there, **more).cpu(), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_equal_to_the_bit(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, weight, scale_a, scale_b = drawn(*shape)
    assert_equal(x, weight, scale_a, scale_b, dtype)
    assert_equal(x, weight, scale_a[:1], scale_b[:, :1], dtype)


@pytest.mark.parametrize("tokens", [1, 3, 16])
def test_scales_multiply_in_the_order_asked_for(tokens: int) -> None:
    x, weight, scale_a, scale_b = drawn(tokens, 96, 128)
    for most_few in (0, 4, 16):
        assert_equal(x, weight, scale_a, scale_b, torch.float16, most_few=most_few)


def test_extremes_saturate_and_overflow_as_in_the_reference() -> None:
    x, weight = torch.full((20, 256), -128, dtype=torch.int8), torch.full((16, 256), -128, dtype=torch.int8)
    assert_equal(x, weight, torch.full((20, 1), 1e3), torch.full((1, 16), 1e3), torch.float16)
    assert_equal(x, -weight - 1, torch.full((20, 1), 1e-30), torch.full((1, 16), 1e-8), torch.bfloat16)


def test_no_tokens_make_nothing() -> None:
    x, weight, scale_a, scale_b = drawn(3, 16, 32)
    assert_equal(x[:0], weight, scale_a[:0], scale_b, torch.float16)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", LARGE)
def test_large_int8_products_are_equal_to_the_bit(shape: tuple[int, int, int]) -> None:
    x, weight, scale_a, scale_b = (one.cuda() for one in drawn(*shape))
    for dtype in DTYPES:
        wanted = smooth_quant_gemm.reference(x, weight, scale_a, scale_b, dtype)
        for _ in range(3):
            assert torch.equal(scaled_gemm_triton.run(x, weight, scale_a, scale_b, dtype), wanted)


@pytest.mark.parametrize(
    "shape",
    [*SHAPES, *(pytest.param(shape, marks=pytest.mark.gpu) for shape in ((300, 4096, 4096), (2048, 1040, 8192)))],
)
def test_fp8_is_within_its_tolerance(shape: tuple[int, int, int]) -> None:
    x, weight, scale_a, scale_b = (one.to(DEVICE) for one in drawn(*shape))
    x, weight = ((one.float() / 16).to(torch.float8_e4m3fn) for one in (x, weight))
    got = scaled_gemm_triton.run(x, weight, scale_a, scale_b, torch.float16, most_few=0)
    magnitude = (x.double().abs() @ weight.double().abs().t()) * scale_a * scale_b
    exact = (x.double() @ weight.double().t()) * scale_a * scale_b
    rounding = 2**-11 * exact.abs() + 2**-24
    assert ((got.double() - exact).abs() <= 2e-3 * magnitude + rounding).all()
    wanted = fp8_rowwise_gemm.reference(x, weight, scale_a, scale_b, torch.float16)
    assert ((got.double() - wanted.double()).abs() <= 2e-3 * magnitude + 2 * rounding).all()


@pytest.mark.parametrize("sm", [80, 86, 89, 90, 100, 120])
def test_schedules_fit_the_shared_memory_of_every_generation(sm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=100))
    monkeypatch.setattr(schedules, "compute_capability", lambda device: sm)
    few = schedules.schedules((16, 32, 512, 4, 6), (16, 16, 512, 2, 4), (16, 64, 256, 4, 6), (16, 32, 256, 4, 4))
    many = schedules.schedules((128, 256, 128, 8, 4), (128, 128, 128, 4, 5), (64, 32, 256, 4, 5), (64, 64, 128, 4, 4))
    chosen = schedules.fitting_few(few, {"out": 4096}) + schedules.fitting(many, {"BUCKET": 64})
    room = {80: 163, 90: 227, 100: 227}.get(sm, 99) * 1024
    for config in chosen:
        tile = config.kwargs
        assert (tile["BM"] + tile["BN"]) * tile["BK"] * config.num_stages <= room
