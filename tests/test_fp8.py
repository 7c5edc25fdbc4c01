"""FP8 weights, and the plugins that execute FP8 and weight-only formats against products in float64."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from enginesmith.convert.numbers.fp8 import per_channel, per_tensor, range_scale
from enginesmith.convert.numbers.quantized import QuantizedLinear
from enginesmith.convert.numbers.rounding import Grid, weight_only
from enginesmith.plugins import (
    fp8,
    fp8_quantize_dequantize,
    fp8_rowwise_gemm,
    weight_only_groupwise_quant_matmul,
    weight_only_quant_matmul,
)

from .conftest import DATA


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("quantize", [per_tensor, per_channel])
def test_weights_are_within_half_a_step(quantize: Callable[[torch.Tensor], QuantizedLinear]) -> None:
    weight = draw(32, 64) * torch.logspace(-3, 3, 32)[:, None]
    quantized = quantize(weight)
    # Three mantissa bits round by at most a sixteenth; below the smallest normal number by half of 2^-9.
    bound = torch.maximum(weight.abs() / 16, quantized.scale[:, None] * 2**-10)
    assert ((quantized.dequantize() - weight).abs() <= bound * 1.001).all()
    assert quantized.values.float().abs().max() == 448


def test_scales_by_hand() -> None:
    weight = torch.tensor([[1.0, -448.0], [0.0, 44.8], [0.0, 0.0]])
    assert per_tensor(weight).scale.tolist() == [1.0]
    rows = per_channel(weight)
    torch.testing.assert_close(rows.scale, torch.tensor([1.0, 0.1, 1 / (448 * 512)]))
    assert rows.values.dtype == torch.float8_e4m3fn
    assert not rows.values[2].float().any()
    assert range_scale(torch.tensor(89.6)).tolist() == pytest.approx([0.2])


def test_saturation_makes_no_nan() -> None:
    assert fp8.saturate(torch.tensor([1e6, -1e6, 460.0])).float().tolist() == [448, -448, 448]


def test_names_and_shapes_are_those_of_the_manifest() -> None:
    manifest = json.loads((DATA / "llama.json").read_text())
    weight = draw(512, 512)
    for algo, scale, quantize in (
        ("FP8", "weights_scaling_factor", per_tensor),
        ("FP8_PER_CHANNEL_PER_TOKEN", "per_channel_scale", per_channel),
    ):
        found = [c for c in manifest["cases"] if (c["algo"], c["map"]) == (algo, "tp1")]
        declared = manifest["param_tables"][found[0]["params"]]["layer"]
        quantized = quantize(weight)
        for name, tensor in (("weight", quantized.values), (scale, quantized.scale)):
            shape, dtype = declared[f"attention.dense.{name}"][:2]
            assert (list(tensor.shape), str(tensor.dtype)) == (shape, f"torch.{dtype}")


def test_tokens_have_scales_of_their_own() -> None:
    x = torch.stack((draw(64), draw(64, seed=1) * 1000, torch.zeros(64))).half()
    quantized, scale = fp8.quantize_per_token(x)
    torch.testing.assert_close(quantized.float() * scale, x.float(), rtol=1 / 16, atol=1e-3)
    assert quantized[:2].float().abs().amax(1).tolist() == [448, 448]
    assert not quantized[2].float().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fp8_products(dtype: torch.dtype) -> None:
    x, weight = draw(5, 96).to(dtype), draw(16, 96, seed=1)
    exact = x.double() @ weight.double().t()
    rows = per_channel(weight)
    quantized, scale = fp8.quantize_per_token(x)
    y = fp8_rowwise_gemm.reference(quantized, rows.values, scale, rows.scale, dtype)
    expected = (quantized.double() * scale.double()) @ (rows.values.double() * rows.scale.double()[:, None]).t()
    torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=1e-2)
    assert (y.double() - exact).norm() < 0.06 * exact.norm()
    whole = per_tensor(weight)
    y = fp8_quantize_dequantize.reference(x, whole.values, range_scale(x.float().abs().amax()), whole.scale)
    assert y.dtype == dtype
    assert (y.double() - exact).norm() < 0.06 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_weight_only_product(bits: int, dtype: torch.dtype) -> None:
    x, weight = draw(5, 96).to(dtype), draw(16, 96, seed=1)
    rounded = weight_only(weight, bits)
    y = weight_only_quant_matmul.reference(x, rounded.values, rounded.scale[:, 0].to(dtype), bits, 80)
    expected = x.double() @ rounded.dequantize().double().t()
    assert y.dtype == dtype
    assert (y.double() - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_groupwise_product(symmetric: bool, dtype: torch.dtype) -> None:
    x, weight, bias = draw(5, 128).to(dtype), draw(16, 128, seed=1), draw(16, seed=2).to(dtype)
    rounded = Grid.of(weight, 64, 4, symmetric).stored(dtype).round(weight)
    zero = None if rounded.zero is None else (-rounded.zero * rounded.scale).t().to(dtype)
    prequant = draw(128, seed=3).abs().add(0.5).to(dtype)
    y = weight_only_groupwise_quant_matmul.reference(
        x, rounded.values, rounded.scale.t().to(dtype), prequant, zero, bias=bias, bits=4, sm=80
    )
    expected = (x * prequant).double() @ rounded.dequantize().double().t() + bias.double()
    assert y.dtype == dtype
    assert (y.double() - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_w4a8_product(dtype: torch.dtype) -> None:
    """Scales are divided by the second weight scale, the input by its own; alpha takes both back."""
    x, weight = draw(5, 128).to(dtype), draw(16, 128, seed=1)
    rounded = Grid.of(weight, 128, 4, True).round(weight)
    second, activation = range_scale(weight.abs().amax()), range_scale(x.float().abs().amax())
    y = weight_only_groupwise_quant_matmul.reference(
        x,
        rounded.values,
        (rounded.scale / second).t().half(),
        (torch.ones(128) / activation).to(dtype),
        alpha=activation * second,
        bits=4,
        sm=89,
    )
    expected = x.double() @ rounded.dequantize().double().t()
    assert y.dtype == dtype
    assert (y.double() - expected).norm() < 0.06 * expected.norm()
