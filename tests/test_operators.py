"""PyTorch operators: what they return, that PyTorch's own checks pass, that models that use them compile and export."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from enginesmith.plugins import operators, quantize_per_token, rmsnorm_quantization, smooth_quant_gemm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPS = torch.ops.enginesmith


def drawn(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


X, GATE = drawn(20, 64), drawn(20, 64, seed=1)
WEIGHT, BIAS, SCALE = drawn(64, seed=2), drawn(64, seed=3), torch.tensor([20.0], device=DEVICE)
SMOOTHER = WEIGHT.abs() + 0.5
INTEGERS, MATRIX = (drawn(n, 64, dtype=torch.float32, seed=n).mul(40).to(torch.int8) for n in (20, 48))
ROWS, COLUMNS = torch.rand(20, 1, device=DEVICE), torch.rand(1, 48, device=DEVICE)
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "smooth_quant_gemm": (INTEGERS, MATRIX, ROWS, COLUMNS, torch.float16, drawn(48)),
    "quantize_per_token": (X, SMOOTHER),
    "quantize_static": (X, SCALE, SMOOTHER),
    "rms_norm": (X, WEIGHT, 1e-5),
    "rms_norm_quantize_per_token": (X, WEIGHT, 1e-5),
    "rms_norm_quantize_static": (X, WEIGHT, SCALE, 1e-5),
    "add_rms_norm_quantize_per_token": (X, GATE, WEIGHT, 1e-5),
    "add_rms_norm_quantize_static": (X, GATE, WEIGHT, SCALE, 1e-5),
    "layer_norm_quantize_per_token": (X, WEIGHT, BIAS, 1e-5),
    "layer_norm_quantize_static": (X, WEIGHT, BIAS, SCALE, 1e-5),
    "gated_activation": (GATE, X),
    "gated_activation_quantize_per_token": (GATE, X, SMOOTHER),
    "gated_activation_quantize_static": (GATE, X, SCALE, SMOOTHER),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_pytorchs_own_checks_pass(name: str) -> None:
    torch.library.opcheck(getattr(OPS, name).default, ARGUMENTS[name])


def test_fp8_operators_pass_them_too() -> None:
    x, weight = (t.to(torch.float8_e4m3fn) for t in (X, drawn(48, 64)))
    shapes = ("test_faketensor",)  # PyTorch compares no numbers of this dtype
    torch.library.opcheck(OPS.fp8_gemm.default, (x, weight, ROWS, COLUMNS, torch.float16), test_utils=shapes)
    for name in ("quantize_per_token", "rms_norm_quantize_per_token", "gated_activation_quantize_per_token"):
        torch.library.opcheck(getattr(OPS, name).default, ARGUMENTS[name], {"kind": "fp8"}, test_utils=shapes)


def test_every_operator_is_checked() -> None:
    held = {name for name in vars(operators) if name.startswith("_") and not name.startswith("__")}
    assert {name.removeprefix("_") for name in held} == {*ARGUMENTS, "fp8_gemm"}


class Linear(torch.nn.Module):
    """A norm that quantizes, and a linear behind it, of a user's model."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, q, scale = OPS.add_rms_norm_quantize_per_token(x, residual, WEIGHT, 1e-5)
        return hidden, OPS.smooth_quant_gemm(q, MATRIX, scale, COLUMNS, x.dtype)


def wanted(x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, residual, weight, matrix, columns = (t.cpu() for t in (x, residual, WEIGHT, MATRIX, COLUMNS))
    hidden = x + residual
    q, scale = quantize_per_token.reference(rmsnorm_quantization.rms_norm(hidden, weight, 1e-5))
    return hidden, smooth_quant_gemm.reference(q, matrix, scale, columns, x.dtype)


@pytest.mark.parametrize("tokens", [1, 4, 5, 40])
def test_an_exported_model_computes_what_references_do(tokens: int) -> None:
    dynamic = {0: torch.export.Dim("tokens", min=1, max=4096)}
    program = torch.export.export(Linear(), (X, GATE), dynamic_shapes=(dynamic, dynamic))
    x, residual = drawn(tokens, 64, seed=7), drawn(tokens, 64, seed=8)
    for got, expected in zip(program.module()(x, residual), wanted(x, residual), strict=True):
        assert torch.equal(got.cpu(), expected)


def test_a_compiled_model_computes_what_references_do() -> None:
    model = torch.compile(Linear(), fullgraph=True, backend="inductor" if DEVICE == "cuda" else "aot_eager")
    for got, expected in zip(model(X, GATE), wanted(X, GATE), strict=True):
        assert torch.equal(got.cpu(), expected)


@pytest.mark.gpu
def test_operators_are_captured_in_a_cuda_graph() -> None:
    model, x, residual = Linear(), X.clone(), GATE.clone()
    model(x, residual)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = model(x, residual)
    x.copy_(drawn(20, 64, seed=11))
    graph.replay()
    for got, expected in zip(made, wanted(x, residual), strict=True):
        assert torch.equal(got.cpu(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device here")
def test_operators_are_computed_where_their_tensors_are() -> None:
    """Whatever device is the current one."""
    there = torch.device("cuda", 1)
    q, scale = OPS.rms_norm_quantize_per_token(X.to(there), WEIGHT.to(there), 1e-5)
    made = OPS.smooth_quant_gemm(q, MATRIX.to(there), scale, COLUMNS.to(there), torch.float16)
    expected, scales = OPS.rms_norm_quantize_per_token(X, WEIGHT, 1e-5)
    assert made.device == there
    assert torch.equal(made.cpu(), OPS.smooth_quant_gemm(expected, MATRIX, scales, COLUMNS, torch.float16).cpu())
