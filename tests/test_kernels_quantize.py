"""Kernels that quantize rows against their references, integer by integer and bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from enginesmith.plugins import (
    arithmetic,
    arithmetic_triton,
    fp8,
    gated_activation,
    int8,
    layernorm_quantization,
    quantize_per_token,
    quantize_tensor,
    quantized_rows_triton,
    rmsnorm_quantization,
)
from enginesmith.plugins import gated_activation_triton as gated_triton
from enginesmith.plugins import layernorm_quantization_triton as layernorm_triton
from enginesmith.plugins import quantize_per_token_triton as per_token_triton
from enginesmith.plugins import quantize_tensor_triton as tensor_triton
from enginesmith.plugins import rmsnorm_quantization_triton as rmsnorm_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float16, torch.bfloat16]
KINDS = ["int8", "fp8"]
# What quantizes: a kind, and whether with a scale that is given.
WAYS = [(None, False), ("int8", False), ("int8", True), ("fp8", False), ("fp8", True)]
SHAPES = [(1, 64), (5, 100), (3, 1536), (2, 5120)]
Function = Callable[..., Any]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows(tokens: int, channels: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Rows of several sizes with a few wide channels; one of zeros, where there are some."""
    x = draw(tokens, channels, seed=seed) * torch.tensor([1.0, 300.0, 2e-6, 0.01])[torch.arange(tokens) % 4, None]
    x[:, ::37] *= 20
    if tokens > 4:
        x[4] = 0
    return x.to(dtype)


def smoother(channels: int, dtype: torch.dtype) -> torch.Tensor:
    return (0.3 + draw(channels, seed=9).abs()).to(dtype)


def static(kind: str | None, given: bool) -> torch.Tensor | None:
    """A scale that saturates some values."""
    return {"int8": torch.tensor([41.7]), "fp8": torch.tensor([0.0031])}[kind] if given and kind else None


def numbers(made: Any) -> list[np.ndarray]:
    """All that came out, as bytes."""
    tensors = made if isinstance(made, tuple) else (made,)
    return [t.cpu().contiguous().view(torch.uint8).numpy() for t in tensors if t is not None]


def to_device(value: Any) -> Any:
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


def assert_equal(run: Function, reference: Function, *args: Any, **options: Any) -> None:
    expected = reference(*args, **options)
    made = run(*map(to_device, args), **{name: to_device(value) for name, value in options.items()})
    assert type(made) is type(expected)
    for ours, theirs in zip(numbers(made), numbers(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "given"), WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("added", [False, True], ids=["", "residual"])
def test_rms_norm(shape: tuple[int, int], kind: str | None, given: bool, added: bool, dtype: torch.dtype) -> None:
    x, weight = rows(*shape, dtype), (1 + 0.3 * draw(shape[1], seed=1)).to(dtype)
    residual = rows(*shape, dtype, seed=2) if added else None
    options = {"residual": residual, "kind": kind, "scale": static(kind, given)}
    assert_equal(rmsnorm_triton.run, rmsnorm_quantization.reference, x, weight, 1e-5, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "given"), WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("added", [False, True], ids=["", "residual"])
def test_layer_norm(shape: tuple[int, int], kind: str | None, given: bool, added: bool, dtype: torch.dtype) -> None:
    x, weight = rows(*shape, dtype) + 2, (1 + 0.3 * draw(shape[1], seed=1)).to(dtype)
    bias, residual = (draw(shape[1], seed=3).to(dtype), rows(*shape, dtype, seed=2)) if added else (None, None)
    options = {"residual": residual, "kind": kind, "scale": static(kind, given)}
    assert_equal(layernorm_triton.run, layernorm_quantization.reference, x, weight, bias, 1e-5, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("divided", [False, True], ids=["", "smoother"])
def test_per_token(shape: tuple[int, int], kind: str, divided: bool, dtype: torch.dtype) -> None:
    args = rows(*shape, dtype), smoother(shape[1], dtype) if divided else None
    assert_equal(per_token_triton.run, quantize_per_token.reference, *args, kind=kind)
    assert_equal(per_token_triton.run_with_sums, quantize_per_token.reference_with_sums, *args)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("divided", [False, True], ids=["", "smoother"])
def test_static(shape: tuple[int, int], kind: str, divided: bool, dtype: torch.dtype) -> None:
    args = rows(*shape, dtype), static(kind, True), smoother(shape[1], dtype) if divided else None
    assert_equal(tensor_triton.run, quantize_tensor.reference, *args, kind=kind)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "given"), WAYS)
@pytest.mark.parametrize("activation", gated_activation.ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 64), (5, 100), (2, 5120)])
def test_gated(shape: tuple[int, int], activation: str, kind: str | None, given: bool, dtype: torch.dtype) -> None:
    both = rows(shape[0], 2 * shape[1], dtype) / 256
    both[:, shape[1] :] = draw(*shape, seed=4)
    gate, up = both.split(shape[1], 1)
    divisor, scale = smoother(shape[1], dtype), static(kind, given)
    options = {"activation": activation, "kind": kind, "scale": scale}
    for args in ((gate, up), (gate, up, divisor), (gate,)):
        assert_equal(gated_triton.run, gated_activation.reference, *args, **options)


@triton.jit  # type: ignore[untyped-decorator]
def each(x, y, n, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + places, mask=places < n, other=0.0)
    if FUNCTION == "exp":
        made = arithmetic_triton.exp(value)
    elif FUNCTION == "int8":
        made = arithmetic_triton.to_int8(value, True)
    else:
        made = arithmetic_triton.to_fp8(value, FUNCTION == "fp8 by the device")
    tl.store(y + places, made, mask=places < n)


def on_device(function: str, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=dtype, device=DEVICE)
    grid = (triton.cdiv(x.numel(), 4096),)
    each[grid](x.to(DEVICE), y, x.numel(), FUNCTION=function, BLOCK=4096, **arithmetic_triton.OPTIONS)
    return y.cpu()


def some_of_every_size(exponents: int) -> torch.Tensor:
    """float32 numbers of both signs whose sizes reach from 2^-exponents to 2^exponents, and ties of 3 and 7 bits."""
    x = draw(200_000) * torch.exp2(
        (torch.rand(200_000, generator=torch.Generator().manual_seed(1)) * 2 - 1) * exponents
    )
    ties = (torch.arange(-4096, 4096) / 16)[:, None] * torch.exp2(torch.arange(-20, 12).float())
    return torch.cat([x, ties.flatten(), torch.tensor([0.0, -0.0, 448, 464, 480, -1e30, 1e30, 127.5, -128.5])])


def test_exponentials_are_the_same_and_near() -> None:
    x = torch.cat([torch.linspace(-106, 90, 500_001), some_of_every_size(7), torch.tensor([1e30, -1e30, 0.0])])
    ours = arithmetic.exp(x)
    np.testing.assert_array_equal(on_device("exp", x, torch.float32).view(torch.int32), ours.view(torch.int32))
    exact = x.double().exp()
    assert torch.equal(ours.isinf(), exact.float().isinf())
    finite = ~ours.isinf()
    step = torch.exp2(exact[finite].clamp_min(2.0**-126).log2().floor() - 23)
    assert float(((ours.double() - exact)[finite].abs() / step).max()) < 1


def test_integers_and_fp8_round_half_to_even_and_saturate() -> None:
    x = some_of_every_size(12)
    np.testing.assert_array_equal(on_device("int8", x, torch.int8), int8.saturate(x))
    ways = ["fp8"] + ["fp8 by the device"] * quantized_rows_triton.converts_fp8(torch.empty(0, device=DEVICE))
    for way in ways:
        np.testing.assert_array_equal(on_device(way, x, torch.uint8), fp8.saturate(x).view(torch.uint8))


def every_number(dtype: torch.dtype, below: float = float("inf")) -> torch.Tensor:
    """Of a dtype, in rows; bfloat16's smallest ones are left out: Triton's interpreter misreads subnormal ones."""
    x = torch.arange(2**16).to(torch.int32).to(torch.int16).view(dtype)
    x = x[(x.abs() < below) & ((x == 0) | (x.abs() >= 2.0**-60) | (dtype == torch.float16))]
    return x[: len(x) // 1024 * 1024].view(-1, 1024)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_is_divided_by_a_smoother(dtype: torch.dtype) -> None:
    x, divisor = every_number(dtype, 2.0**60), (torch.exp2(draw(1024) * 4) * draw(1024, seed=1).sign()).to(dtype)
    assert_equal(gated_triton.run, gated_activation.reference, x, None, divisor, activation="relu")
    assert_equal(gated_triton.run, gated_activation.reference, -x, None, divisor, activation="relu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_quotients_half_way_between_fp8_numbers(dtype: torch.dtype) -> None:
    middle = torch.cat([torch.arange(16, 32) * 2.0**exponent for exponent in range(-14, 6)] + [torch.arange(64) / 1024])
    x = torch.stack([middle, -middle])
    for scale in (0.375, 0.0625, 3.0, *([2.0**-70] if dtype == torch.bfloat16 else [])):
        divided = (x * scale).to(dtype), torch.tensor([scale])
        assert_equal(tensor_triton.run, quantize_tensor.reference, *divided, kind="fp8")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", gated_activation.ACTIVATIONS)
def test_every_number_is_activated(activation: str, dtype: torch.dtype) -> None:
    x = every_number(dtype, 2.0**14 if activation == "squared-relu" else 2.0**60)
    assert_equal(gated_triton.run, gated_activation.reference, x, activation=activation)


@triton.jit  # type: ignore[untyped-decorator]
def row_sum(x, y, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    value = tl.load(x + tl.arange(0, BLOCK), mask=tl.arange(0, BLOCK) < n, other=0.0)
    tl.store(y, arithmetic_triton.sum_in_any_order((arithmetic_triton.sums_of_eight(value),), n, 1))


def test_kernels_sum_the_same() -> None:
    for row in rows(4, 5000, torch.float32):
        y = torch.empty(1, dtype=torch.float64, device=DEVICE)
        row_sum[(1,)](row.to(DEVICE), y, 5000, BLOCK=8192, **arithmetic_triton.OPTIONS)
        assert y.item() == arithmetic.sum_in_any_order(row[None]).item()


def test_sums_do_not_depend_on_an_order() -> None:
    x = rows(8, 30_000, torch.float16).float()
    sums = arithmetic.sums_of_eight(x)
    largest, total = sums.abs().amax(-1, keepdim=True), arithmetic.sum_in_any_order(x)
    shuffled = torch.randperm(sums.shape[1], generator=torch.Generator().manual_seed(2))
    for order in (shuffled, shuffled.flip(0)):
        assert torch.equal(arithmetic.sum_in_any_order(x.unflatten(1, (-1, 8))[:, order].flatten(1)), total)
    bound = len(shuffled) * largest.double()
    assert torch.equal((sums.double() + bound - bound).cumsum(-1)[:, -1:], total)
    lost = (total - sums.double().sum(-1, keepdim=True)) / largest
    assert float(lost.abs().nan_to_num().max()) < 2.0**-53 * len(shuffled) ** 2


@pytest.mark.parametrize("channels", [1, 7, 96, 4099])
def test_sums_are_as_near_as_float32(channels: int) -> None:
    x = rows(4, channels, torch.float32)
    exact, sizes = x.double().sum(-1, keepdim=True), x.double().abs().sum(-1, keepdim=True)
    assert float(((arithmetic.sum_in_any_order(x) - exact).abs() / sizes).max()) < 3 * 2.0**-24


def test_gelu_and_silu_are_pytorchs_but_for_last_bits() -> None:
    x = draw(100_000) * 4
    for ours, theirs in (
        (gated_activation.silu(x), torch.nn.functional.silu(x.double())),
        (gated_activation.gelu(x), torch.nn.functional.gelu(x.double(), approximate="tanh")),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [None, "int8"])
def test_rows_of_float32(kind: str | None) -> None:
    x, weight, bias = draw(3, 1500) + 2, draw(1500, seed=1), draw(1500, seed=2)
    assert_equal(rmsnorm_triton.run, rmsnorm_quantization.reference, x, weight, 1e-5, kind=kind)
    assert_equal(layernorm_triton.run, layernorm_quantization.reference, x, weight, bias, 1e-5, kind=kind)
    assert_equal(gated_triton.run, gated_activation.reference, x, x - 2, kind=kind)


def test_rows_of_any_stride_are_read() -> None:
    wide, weight = rows(5, 300, torch.float16), draw(100).half()
    x, residual = wide[:, 3:103], wide[:, 150:250]
    assert_equal(rmsnorm_triton.run, rmsnorm_quantization.reference, x, weight, 1e-6, residual=residual, kind="int8")
    assert_equal(layernorm_triton.run, layernorm_quantization.reference, x, weight, None, 1e-6, residual=residual)
    assert_equal(per_token_triton.run, quantize_per_token.reference, x.t()[:, :50])
    assert_equal(tensor_triton.run, quantize_tensor.reference, x, static("fp8", True), kind="fp8")


def test_a_row_with_an_infinite_value_is_one_of_zeros() -> None:
    x = rows(3, 300, torch.float16)
    x[1, 5], x[2, 7] = float("inf"), float("-inf")
    assert_equal(per_token_triton.run, quantize_per_token.reference, x)


@pytest.mark.parametrize("shape", [(3, 100), (2, 5120)])
def test_schedules_of_many_rows(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_rows_triton, "FEW_ROWS", 0)
    x, weight, bias = rows(*shape, torch.float16), draw(shape[1], seed=1).half(), draw(shape[1], seed=2).half()
    for kind, given in WAYS:
        options = {"kind": kind, "scale": static(kind, given)}
        assert_equal(rmsnorm_triton.run, rmsnorm_quantization.reference, x, weight, 1e-5, **options)
        assert_equal(layernorm_triton.run, layernorm_quantization.reference, x, weight, bias, 1e-5, **options)
        assert_equal(gated_triton.run, gated_activation.reference, x / 256, x / 512, **options)
    assert_equal(per_token_triton.run_with_sums, quantize_per_token.reference_with_sums, x)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [4096, 11008, 28672, 32768])
def test_many_rows(channels: int, dtype: torch.dtype) -> None:
    x, residual, weight = rows(200, channels, dtype), rows(200, channels, dtype, seed=1), draw(channels).to(dtype)
    gate, bias = x / 256, draw(channels, seed=2).to(dtype)
    for kind, given in WAYS:
        options = {"kind": kind, "scale": static(kind, given)}
        added = options | {"residual": residual}
        assert_equal(rmsnorm_triton.run, rmsnorm_quantization.reference, x, weight, 1e-5, **added)
        assert_equal(layernorm_triton.run, layernorm_quantization.reference, x + 2, weight, bias, 1e-5, **added)
        assert_equal(gated_triton.run, gated_activation.reference, gate, weight.expand(200, -1), **options)
    for kind in KINDS:
        divisor = smoother(channels, dtype)
        assert_equal(per_token_triton.run, quantize_per_token.reference, x / 4, divisor, kind=kind)
        assert_equal(tensor_triton.run, quantize_tensor.reference, x, static(kind, True), divisor, kind=kind)
    assert_equal(per_token_triton.run_with_sums, quantize_per_token.reference_with_sums, x)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_references_are_the_same_on_a_gpu(kind: str) -> None:
    x, weight = rows(64, 3000, torch.float16), draw(3000).half()
    for reference, args in (
        (rmsnorm_quantization.reference, (x, weight, 1e-5)),
        (layernorm_quantization.reference, (x, weight, None, 1e-5)),
        (gated_activation.reference, (x / 256, x / 512)),
    ):
        assert_equal(reference, reference, *args, kind=kind)
    assert_equal(quantize_per_token.reference_with_sums, quantize_per_token.reference_with_sums, x)
