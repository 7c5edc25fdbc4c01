"""Kernels that quantize rows against their references, integer by integer and bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from enginesmith.plugins import (
    arithmetic,
    fp8,
    gated_activation,
    int8,
    layernorm_quantization,
    quantize_per_token,
    quantize_tensor,
    rmsnorm_quantization,
)
from enginesmith.plugins import (
    gated_activation_triton as gated_triton,
)
from enginesmith.plugins import (
    layernorm_quantization_triton as layernorm_triton,
)
from enginesmith.plugins import (
    quantize_per_token_triton as per_token_triton,
)
from enginesmith.plugins import (
    quantize_tensor_triton as tensor_triton,
)
from enginesmith.plugins import (
    rmsnorm_quantization_triton as rmsnorm_triton,
)

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
    both = rows(shape[0], 2 * shape[1], dtype) / 16
    both[:, shape[1] :] = draw(*shape, seed=4)
    gate, up = both.split(shape[1], 1)
    divisor, scale = smoother(shape[1], dtype), static(kind, given)
    options = {"activation": activation, "kind": kind, "scale": scale}
    for args in ((gate, up), (gate, up, divisor), (gate,)):
        assert_equal(gated_triton.run, gated_activation.reference, *args, **options)
