"""PyTorch operators: what they return, that PyTorch's own checks pass, that models that use them compile and export."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from enginesmith.convert.numbers.nibbles import pack_rows
from enginesmith.plugins import (
    fragments,
    operators,
    packing,
    qserve_gemm,
    quantize_per_token,
    rmsnorm_quantization,
    smooth_quant_gemm,
    weight_only_groupwise_quant_matmul,
)

from . import kv_caches

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPS = torch.ops.enginesmith


def drawn(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


X, GATE = drawn(20, 64), drawn(20, 64, seed=1)
WEIGHT, BIAS, SCALE = drawn(64, seed=2), drawn(64, seed=3), torch.tensor([20.0], device=DEVICE)
SMOOTHER = WEIGHT.abs() + 0.5
INTEGERS, MATRIX = (drawn(n, 64, dtype=torch.float32, seed=n).mul(40).to(torch.int8) for n in (20, 48))
ROWS, COLUMNS = torch.rand(20, 1, device=DEVICE), torch.rand(1, 48, device=DEVICE)
FOUR_BITS = torch.randint(-8, 8, (64, 64), generator=torch.Generator().manual_seed(9)).to(torch.int8)
PACKED = packing.pack(FOUR_BITS, packing.layout_of(4), 90).to(DEVICE)
GROUP_SCALES = drawn(1, 64, seed=5).abs() * 0.1
# QServe's: INT8 rows, their scales and sums, 4-bit integers, and both levels of scales and zeros.
QSERVE_X = drawn(20, 256, dtype=torch.float32, seed=6).mul(40).to(torch.int8)
QSERVE_SCALES, QSERVE_SUMS = drawn(20, 1, seed=7).abs() * 0.01, drawn(20, 1, seed=8)
UNSIGNED = torch.randint(0, 16, (64, 256), generator=torch.Generator().manual_seed(10)).to(torch.int8)
FRAGMENTS = fragments.pack(UNSIGNED).to(DEVICE)
S1, SZEROS = drawn(64, seed=9).abs() * 0.1, drawn(64, seed=10)
S2, Z2 = (torch.randint(-128, 128, (64, 2), generator=torch.Generator().manual_seed(n)).to(torch.int8) for n in (1, 2))
S2_STORED, Z2_STORED = (fragments.by_group(values).to(DEVICE) for values in (S2, Z2))
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "smooth_quant_gemm": (INTEGERS, MATRIX, ROWS, COLUMNS, torch.float16, drawn(48)),
    "weight_only_gemm": (X, PACKED, GROUP_SCALES, GROUP_SCALES * 3, SMOOTHER, BIAS, 4, "sm90"),
    "qserve_gemm_per_group": (QSERVE_X, QSERVE_SCALES, FRAGMENTS, S1, S2_STORED, Z2_STORED),
    "qserve_gemm_per_channel": (QSERVE_X, QSERVE_SCALES, QSERVE_SUMS, FRAGMENTS, S1, SZEROS),
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
    assert {name.removeprefix("_") for name in held} == {*ARGUMENTS, *kv_caches.ARGUMENTS, "fp8_gemm"}


@pytest.mark.parametrize("tokens", [1, 3, 20])
@pytest.mark.parametrize(
    ("layout", "bits"), [("rows", 4), ("sm80", 4), ("sm90", 4), ("fp8", 4), ("sm80", 8), ("sm90", 8)]
)
def test_packed_integers_are_multiplied_in_every_order(layout: str, bits: int, tokens: int) -> None:
    half, draw = 2 ** (bits - 1), torch.Generator().manual_seed(bits)
    weight = torch.randint(-half, half, (128, 256), generator=draw).to(torch.int8)
    sm, fp8 = packing.STREAMS.get(layout, (0, False))
    packed = pack_rows(weight) if layout == "rows" else packing.pack(weight, packing.layout_of(bits, fp8), sm)
    x, scale, bias = drawn(tokens, 256).cpu(), drawn(2, 128, seed=3).cpu().abs() * 0.1, drawn(128, seed=4).cpu()
    wanted = x.float() @ weight_only_groupwise_quant_matmul.dequantized(weight, scale).float().t() + bias.float()
    given = (one.to(DEVICE) for one in (x, packed, scale))
    got = OPS.weight_only_gemm(*given, bias=bias.to(DEVICE), bits=bits, layout=layout).cpu().float()
    assert (got - wanted).norm() < 1e-3 * wanted.norm()


@pytest.mark.parametrize("tokens", [1, 20])
def test_qserves_products_are_those_of_the_integers(tokens: int) -> None:
    """And the sums are taken off in the order that the plugin has."""
    x, s_x, sums, s1, szeros = (t.cpu() for t in (QSERVE_X, QSERVE_SCALES, QSERVE_SUMS, S1, SZEROS))
    x, s_x, sums = x[:tokens], s_x[:tokens], sums[:tokens]
    rows = [t[:tokens] for t in (QSERVE_X, QSERVE_SCALES, QSERVE_SUMS)]
    got = OPS.qserve_gemm_per_group(*rows[:2], FRAGMENTS, S1, S2_STORED, Z2_STORED).cpu()
    assert torch.equal(got, qserve_gemm.reference_per_group(x, s_x, UNSIGNED, s1, S2, Z2))
    got = OPS.qserve_gemm_per_channel(*rows, FRAGMENTS, S1, SZEROS).cpu()
    assert torch.equal(got, qserve_gemm.reference_per_channel(x, s_x, sums, UNSIGNED, s1, szeros))


def test_a_prequant_may_lie_as_a_checkpoint_has_it() -> None:
    given = list(ARGUMENTS["weight_only_gemm"])
    once = OPS.weight_only_gemm(*given)
    given[4] = given[4][None]
    assert torch.equal(OPS.weight_only_gemm(*given), once)


def bad(name: str, place: int, value: object) -> tuple[Any, ...]:
    """The arguments of an operator, one of them another."""
    whole = list(ARGUMENTS[name])
    whole[place:] = [value, *whole[place + 1 :]]
    return tuple(whole)


@pytest.mark.parametrize(
    ("name", "place", "value", "said"),
    [
        ("weight_only_gemm", 1, PACKED[:32], r"packed is .*; the bytes of \[out, in\] integers"),
        ("weight_only_gemm", 2, GROUP_SCALES[0], r"scale is .*; \[groups, out\] in x's dtype, one group or"),
        ("weight_only_gemm", 2, GROUP_SCALES.t().contiguous(), r"scale is .*\[64, 1\]; \[groups, out\]"),
        ("weight_only_gemm", 1, None, r"packed is None; the bytes of \[out, in\] integers"),
        ("weight_only_gemm", 4, SMOOTHER.repeat(2, 1), r"prequant is .*; \[in\] or \[1, in\]"),
        ("rms_norm", 1, None, "weight is None; float16, bfloat16 or float32"),
        ("layer_norm_quantize_per_token", 1, None, "weight is None"),
        ("smooth_quant_gemm", 2, None, r"scale_a is None; float32 \[tokens, 1\]"),
        ("gated_activation", 1, None, "up is None; the first matrix's"),
        ("weight_only_gemm", 2, GROUP_SCALES.float(), "scale is torch.float32"),
        ("weight_only_gemm", 3, GROUP_SCALES[0], "zero is .*; the scale's shape and dtype"),
        ("weight_only_gemm", 4, SMOOTHER[:1], "prequant is"),
        ("weight_only_gemm", 6, 3, "bits is 3; 4 or 8 is needed"),
        ("weight_only_gemm", 7, "sm100", "layout is 'sm100'; rows, sm80, sm90 or fp8"),
        ("smooth_quant_gemm", 0, INTEGERS[0], r"x is torch.int8 \[64\]; int8 \[tokens, in\] is needed"),
        ("smooth_quant_gemm", 0, X, "x is torch.float16"),
        ("smooth_quant_gemm", 1, MATRIX[:, :32], "weight is .*; x's dtype and channels"),
        ("smooth_quant_gemm", 1, MATRIX.half(), "weight is torch.float16"),
        ("smooth_quant_gemm", 2, COLUMNS, r"scale_a is .*; float32 \[tokens, 1\] or of one element is needed"),
        ("smooth_quant_gemm", 2, ROWS.half(), "scale_a is torch.float16"),
        ("smooth_quant_gemm", 3, COLUMNS[:, :7], r"scale_b is .*; float32 \[1, out\] or of one element is needed"),
        ("smooth_quant_gemm", 4, torch.int8, "dtype is torch.int8; float16, bfloat16 or float32 is needed"),
        ("smooth_quant_gemm", 5, BIAS[:1], r"bias is .*; \[out\] in the dtype asked for is needed"),
        ("smooth_quant_gemm", 5, drawn(48).float(), "bias is torch.float32"),
        ("qserve_gemm_per_group", 0, X, r"x is torch.float16 .*; int8 \[tokens, in\] is needed"),
        ("qserve_gemm_per_group", 0, QSERVE_X[:, :128], r"packed is .*; int8 \[out, in / 2\]"),
        ("qserve_gemm_per_group", 1, QSERVE_SCALES.float(), r"act_scales is .*; float16 \[tokens, 1\] is needed"),
        ("qserve_gemm_per_group", 1, QSERVE_SCALES[:1], "act_scales is"),
        ("qserve_gemm_per_group", 2, FRAGMENTS[:16], "packed is .*, in a multiple of 128, out of 32, is needed"),
        ("qserve_gemm_per_group", 2, FRAGMENTS.to(torch.uint8), "packed is torch.uint8"),
        ("qserve_gemm_per_group", 3, S1[:32], r"s1_scales is .*; float16 \[out\] is needed"),
        ("qserve_gemm_per_group", 3, S1.float(), "s1_scales is torch.float32"),
        ("qserve_gemm_per_group", 4, S2_STORED.t(), r"s2_scales is .*; int8 \[in / 128, out\] is needed"),
        ("qserve_gemm_per_group", 5, Z2_STORED.half(), "s2_zeros is torch.float16"),
        ("qserve_gemm_per_channel", 2, QSERVE_SUMS[:3], "act_sums is"),
        ("qserve_gemm_per_channel", 3, FRAGMENTS[..., None], "packed is"),
        ("qserve_gemm_per_channel", 5, SZEROS.bfloat16(), "s1_szeros is"),
        (
            "quantize_per_token",
            0,
            X.float(),
            r"x is torch.float32 .*; float16 or bfloat16 \[tokens, channels\] is needed",
        ),
        ("quantize_per_token", 1, SMOOTHER[:1], r"smoother is .*; .* \[channels\] or \[1, channels\] is needed"),
        ("quantize_static", 1, SMOOTHER.float(), "scale is .*; float32 of one element is needed"),
        ("rms_norm", 1, WEIGHT.int(), "weight is torch.int32"),
        ("rms_norm", 1, torch.empty(64, device="meta"), "tensors are on .* and meta; move all to one device"),
        ("rms_norm", 2, -1e-5, "eps is -1e-05; a finite number, 0 or more, is needed"),
        ("rms_norm", 2, float("nan"), "eps is nan"),
        (
            "add_rms_norm_quantize_per_token",
            1,
            GATE[:1],
            "residual is .*; the first matrix's shape and dtype is needed",
        ),
        ("layer_norm_quantize_per_token", 0, X[:, :63], "x is .*, channels even, is needed"),
        ("layer_norm_quantize_per_token", 2, BIAS[:1], "bias is"),
        ("gated_activation", 1, X.bfloat16(), "up is torch.bfloat16"),
    ],
)
def test_what_kernels_would_misread_is_refused(name: str, place: int, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        getattr(OPS, name)(*bad(name, place, value))


def test_qserves_groups_are_whole() -> None:
    with pytest.raises(ValueError, match=r"packed is .*, in a multiple of 128"):
        OPS.qserve_gemm_per_channel(QSERVE_X[:, :192], QSERVE_SCALES, QSERVE_SUMS, FRAGMENTS[:, :96], S1, SZEROS)


@pytest.mark.parametrize("device", [DEVICE, "meta"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_words_that_are_not_known_are_refused(name: str, device: str) -> None:
    """Also where nothing is computed but shapes."""
    made = [value.to(device) if isinstance(value, torch.Tensor) else value for value in ARGUMENTS[name]]
    if "quantize" in name:
        with pytest.raises(ValueError, match="kind is 'int4'; int8 or fp8 is needed"):
            getattr(OPS, name)(*made, kind="int4")
    if "activation" in name and device != "meta":
        with pytest.raises(ValueError, match="activation is 'tanh'; one of silu, gelu, relu, squared-relu is needed"):
            getattr(OPS, name)(*made, activation="tanh")


def test_smoothers_are_read_as_checkpoints_have_them() -> None:
    """[1, channels]."""
    for got, expected in zip(
        OPS.quantize_per_token(X, SMOOTHER.float()[None]), OPS.quantize_per_token(X, SMOOTHER), strict=True
    ):
        assert torch.equal(got, expected)


def test_fp8_products_multiply_e4m3_alone() -> None:
    with pytest.raises(ValueError, match=r"x is torch.float8_e5m2 .*; e4m3 \[tokens, in\] is needed"):
        OPS.fp8_gemm(X.to(torch.float8_e5m2), MATRIX, ROWS, COLUMNS, torch.float16)


def elsewhere(value: Any) -> Any:
    """A tensor, its numbers apart in memory, and in another order."""
    if not isinstance(value, torch.Tensor):
        return value
    apart = torch.stack((value, torch.zeros_like(value)), -1)[..., 0]
    return apart if value.dim() == 1 else apart.t().contiguous().t()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_it_does_not_matter_how_tensors_lie_in_memory(name: str) -> None:
    whole = ARGUMENTS[name]
    moved = tuple(map(elsewhere, whole))
    torch.library.opcheck(getattr(OPS, name).default, moved)
    for got, expected in zip(listed(name, moved), listed(name, whole), strict=True):
        assert torch.equal(got, expected)


def listed(name: str, arguments: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    made = getattr(OPS, name)(*arguments)
    return made if isinstance(made, tuple) else (made,)


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
