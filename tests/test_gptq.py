"""GPTQ against a slow, plain account of the same method, and what must hold whatever the numbers."""

from __future__ import annotations

import pytest
import torch

from enginesmith.convert.errors import InputError
from enginesmith.convert.numbers.gptq import LEAST_HALVED, gptq, inverse_factor, inverse_of_lower, output_error
from enginesmith.convert.numbers.quantized import QuantizedLinear
from enginesmith.convert.numbers.rounding import Grid, row_amax, weight_only
from enginesmith.convert.targets.trtllm.formats.groupwise import check_groups


def layer(out: int, in_: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A random weight and the Gram matrix of correlated inputs, a few channels large."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * in_, in_ // 4, generator=draw) @ torch.randn(in_ // 4, in_, generator=draw)
    x += 0.3 * torch.randn(4 * in_, in_, generator=draw)
    x[:, :: max(in_ // 8, 1)] *= 5
    return torch.randn(out, in_, generator=draw), x.t() @ x


def slow(weight: torch.Tensor, gram: torch.Tensor, grid: Grid, order: list[int], damping: float) -> torch.Tensor:
    """Optimal brain quantization in a given order: after each channel, strike it from the inverse Hessian."""
    h = gram.double()
    inverse = (h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)).inverse()
    w, size = weight.double(), weight.shape[1] // grid.scale.shape[1]
    integers = torch.zeros_like(w)
    for j in order:
        scale = grid.scale[:, j // size].double()
        zero = 0 if grid.zero is None else grid.zero[:, j // size].double()
        integers[:, j] = (w[:, j] / scale + zero).round().clamp(grid.low, grid.high)
        error = (w[:, j] - (integers[:, j] - zero) * scale) / inverse[j, j]
        w = w - error[:, None] * inverse[j]
        inverse = inverse - inverse[:, j : j + 1] * inverse[j : j + 1] / inverse[j, j]
    return integers.to(torch.int8)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("bits", "symmetric", "size"), [(4, True, 32), (4, False, 64), (8, True, 192), (8, False, 32)])
def test_equals_slow_reference_to_the_integer(bits: int, symmetric: bool, size: int, act_order: bool) -> None:
    weight, gram = layer(24, 192)
    grid = Grid.of(weight, size, bits, symmetric)
    order = gram.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(192)
    ours = gptq(weight, gram, grid, act_order)
    assert torch.equal(ours.values, slow(weight, gram, grid, order.tolist(), 0.01))
    assert torch.equal(ours.scale, grid.scale)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_output_error_is_below_round_to_nearest(symmetric: bool, act_order: bool) -> None:
    weight, gram = layer(64, 256)
    grid = Grid.of(weight, 128, 4, symmetric)

    def error(rounded: QuantizedLinear) -> float:
        return float(output_error(rounded.dequantize() - weight, gram))

    assert error(gptq(weight, gram, grid, act_order)) < 0.6 * error(grid.round(weight))


def test_int8_of_smoothquant_and_weight_only() -> None:
    weight, gram = layer(32, 192)
    smoothquant = Grid(row_amax(weight)[:, None] / 127, None, -127, 127)
    scale = weight_only(weight, 8).scale
    for grid in (smoothquant, Grid(scale, None, -128, 127)):
        rounded = gptq(weight, gram, grid, act_order=True)
        assert rounded.values.min() >= grid.low
        assert rounded.zero is None
        nearest = output_error(grid.round(weight).dequantize() - weight, gram)
        assert output_error(rounded.dequantize() - weight, gram) < 0.6 * nearest


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_uncorrelated_inputs_round_to_nearest(symmetric: bool, act_order: bool) -> None:
    weight, _ = layer(16, 192)
    grid = Grid.of(weight, 64, 4, symmetric)
    nearest = grid.round(weight)
    rounded = gptq(weight, torch.eye(192), grid, act_order)
    assert torch.equal(rounded.values, nearest.values)
    assert (rounded.zero is None) == symmetric
    assert symmetric or torch.equal(rounded.zero, nearest.zero)


def test_dead_channels_round_to_nearest_and_disturb_nothing() -> None:
    weight, gram = layer(16, 192)
    gram[5], gram[:, 5] = 0, 0
    grid = Grid.of(weight, 64, 4, True)
    rounded = gptq(weight, gram, grid)
    assert torch.equal(rounded.values[:, 5], grid.round(weight).values[:, 5])
    nothing = gptq(weight, torch.zeros(192, 192), grid)
    assert torch.equal(nothing.values, grid.round(weight).values)


def test_few_tokens_make_a_singular_gram_matrix() -> None:
    weight, _ = layer(16, 192)
    x = torch.randn(3, 192)
    grid = Grid.of(weight, 64, 4, True)
    for damping in (0.0, 0.01):
        rounded = gptq(weight, x.t() @ x, grid, damping=damping)
        nearest = output_error(grid.round(weight).dequantize() - weight, x.t() @ x)
        assert output_error(rounded.dequantize() - weight, x.t() @ x) < nearest


def test_inputs_that_overflowed_are_refused() -> None:
    weight, gram = layer(16, 192)
    gram[3, 5] = float("inf")
    with pytest.raises(InputError, match="Gram matrix of calibration inputs holds NaN or infinity"):
        gptq(weight, gram, Grid.of(weight, 64, 4, True))


def test_group_sizes_that_no_kernel_takes() -> None:
    check_groups(576, 64, "mlp.fc")
    with pytest.raises(InputError, match=r"mlp\.fc: --group_size 128 cannot cut 576 input channels; 64 can"):
        check_groups(576, 128, "mlp.fc")
    with pytest.raises(InputError, match="--group_size 32 cannot cut 256 input channels; 64 or 128 can"):
        check_groups(256, 32, "mlp.fc")
    with pytest.raises(InputError, match="input channels; neither 64 nor 128 can"):
        check_groups(96, 64, "mlp.fc")


def test_same_input_same_integers_and_inputs_kept() -> None:
    weight, gram = layer(16, 192)
    before = weight.clone(), gram.clone()
    grid = Grid.of(weight, 64, 4, False)
    assert torch.equal(gptq(weight, gram, grid).values, gptq(weight, gram, grid).values)
    assert torch.equal(weight, before[0])
    assert torch.equal(gram, before[1])


def test_factor_of_the_inverse() -> None:
    _, gram = layer(1, 64)
    u = inverse_factor(gram, torch.arange(64), 0.0).double()
    assert torch.equal(u, u.triu())
    torch.testing.assert_close(u.t() @ u @ gram.double(), torch.eye(64, dtype=torch.float64), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_factor_is_found_in_float64(damping: float) -> None:
    """Of inputs of which four make up nearly all: float32 would leave three digits."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=draw) @ torch.randn(4, 64, generator=draw)
    x += 0.02 * torch.randn(256, 64, generator=draw)
    gram = x.t() @ x
    h = gram.double() + damping * gram.double().diagonal().mean() * torch.eye(64, dtype=torch.float64)
    expected = torch.linalg.cholesky(h.inverse(), upper=True)
    assert (inverse_factor(gram, torch.arange(64), damping) - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("size", [1, LEAST_HALVED, LEAST_HALVED + 1, 3 * LEAST_HALVED - 1])
def test_inverse_by_halves(size: int) -> None:
    lower = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tril()
    lower.diagonal().abs_().add_(size**0.5)
    inverse = inverse_of_lower(lower)
    assert torch.equal(inverse, inverse.tril())
    torch.testing.assert_close(inverse @ lower, torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_nearest_grid_value_is_at_most_half_a_step_away(bits: int, symmetric: bool) -> None:
    weight = torch.randn(8, 128) + 1
    weight[3] = 0
    weight[4] = weight[4].abs()
    rounded = Grid.of(weight, 32, bits, symmetric).round(weight)
    away = (rounded.dequantize() - weight).abs().unflatten(1, (4, 32)).amax(2)
    assert (away <= rounded.scale * 0.5001).all()
    assert not rounded.dequantize()[3].any()


def test_grids_by_hand() -> None:
    """Rows below 0, above it, on both sides, of zeros, and two groups of one row."""
    weight = torch.tensor([[-1.0, -3, -2, -1], [3, 1, 2, 2], [-1, 4, 0, -8], [0, 0, 0, 0]])
    asymmetric, symmetric = (Grid.of(weight, 2, 4, symmetric) for symmetric in (False, True))
    spans = torch.tensor([[3.0, 2], [3, 2], [5, 8], [15, 15]])
    assert torch.equal(asymmetric.scale[:3], spans[:3] / 15)
    assert torch.equal(asymmetric.zero, torch.tensor([[7.0, 7], [-8, -8], [-5, 7], [-8, -8]]))
    assert torch.equal(symmetric.scale[:3], torch.tensor([[3.0, 2], [3, 2], [4, 8]]) / 7)
    assert symmetric.zero is None
    for grid in (asymmetric, symmetric):
        assert (grid.low, grid.high) == (-8, 7)
        assert not grid.round(weight).dequantize()[3].any()
    eight = Grid.of(weight, 4, 8, False)
    assert (eight.low, eight.high) == (-128, 127)
    torch.testing.assert_close(eight.scale[:3, 0], torch.tensor([3.0, 3, 12]) / 255)
    assert torch.equal(eight.zero[:3, 0], torch.tensor([127.0, -128, 42]))


def test_grid_in_the_dtype_that_stores_it() -> None:
    weight = torch.randn(8, 64) * 1e-7
    weight[0] *= 1e7
    grid = Grid.of(weight, 32, 4, True).stored(torch.float16)
    assert torch.equal(grid.scale.half().float(), grid.scale)
    assert grid.scale.min() > 0
    assert grid.round(weight).dequantize().isfinite().all()


def test_a_matrix_that_no_inputs_have_is_refused() -> None:
    weight, gram = layer(4, 128)
    with pytest.raises(InputError, match="not positive semidefinite"):
        gptq(weight, -gram, Grid.of(weight, 64, 4, True))
