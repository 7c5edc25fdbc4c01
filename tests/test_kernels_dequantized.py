"""Packed weights as kernels dequantize them: to the bit, seen one channel at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from enginesmith.plugins import weight_only_groupwise_quant_matmul as groupwise

pytest.importorskip("triton")

from enginesmith.plugins import (
    packed_fields_triton,
    packed_weight_triton,
    weight_only_groupwise_quant_matmul_triton,
)

from .test_kernels_weight_only import DEVICE, DRAW, DTYPES, KINDS, integers, normal, on_device, packed, scales


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layout", "bits"), KINDS)
@pytest.mark.parametrize(("out", "channels", "group"), [(64, 640, 64)])
def test_dequantized_weights_are_equal(
    layout: str, bits: int, dtype: torch.dtype, out: int, channels: int, group: int
) -> None:
    weight, groups = integers(out, channels, bits), channels // group
    bytes_, scale = packed(weight, bits, layout), scales(groups, out, dtype)
    zero = normal(groups, out, dtype=dtype) * scale
    kind: dict[str, Any] = {"out": out, "bits": bits, "layout": layout}
    cases: tuple[tuple[Any, int | None], ...] = ((None, None), (None, 90), (zero, 80), (zero, 90))
    for z, sm in cases[:: 2 if dtype == torch.float16 else 1]:
        made = packed_weight_triton.dequantize(*on_device(bytes_, scale, z), **{**kind, "sm": sm}).cpu()
        assert torch.equal(made, groupwise.dequantized(weight, scale, z, sm))


@pytest.mark.parametrize("with_zero", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layout", "bits"), KINDS)
def test_one_channel_at_a_time_reads_dequantized_weights(
    layout: str, bits: int, dtype: torch.dtype, with_zero: bool
) -> None:
    """A product with 1 has no sum: outputs are weights, to the bit."""
    weight, scale = integers(64, 128, bits), scales(2, 64, dtype).clamp_max(128)
    zero = normal(2, 64, dtype=dtype) * scale if with_zero else None
    wanted = groupwise.dequantized(weight, scale, zero, 90)
    given = on_device(packed(weight, bits, layout), scale, None, zero)
    few = [(1, 127), (16, 48)]
    for tokens, first in few if DEVICE == "cpu" else [*few, *((1, c) for c in range(64)), (8, 40), (64, 0), (64, 64)]:
        x = torch.eye(128, dtype=dtype)[first : first + tokens].to(DEVICE)
        y = weight_only_groupwise_quant_matmul_triton.run(x, *given, bits=bits, layout=layout, sm=90).cpu()
        assert torch.equal(y, wanted[:, first : first + tokens].t())


@pytest.mark.parametrize("sm", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["rows", "sm80"] if DEVICE == "cuda" else ["rows"])
def test_one_rounding_is_all_where_float32_holds_the_sum(layout: str, dtype: torch.dtype, sm: int) -> None:
    weight, scale = integers(64, 128, 4), scales(2, 64, dtype).clamp_max(128)
    zero = scale * torch.randint(-8, 8, scale.shape, generator=DRAW).to(dtype)
    assert packed_fields_triton.sums_exactly(scale, zero)
    wanted = groupwise.dequantized(weight, scale, zero, sm)
    given = on_device(packed(weight, 4, layout), scale, None, zero)
    for tokens, first in ((1, 126), (16, 48)):
        x = torch.eye(128, dtype=dtype)[first : first + tokens].to(DEVICE)
        run = weight_only_groupwise_quant_matmul_triton.run
        y = run(x, *given, bits=4, layout=layout, sm=sm, once=True).cpu()
        assert torch.equal(y, wanted[:, first : first + tokens].t())


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_that_float32_does_not_hold_are_known(dtype: torch.dtype) -> None:
    """Rounded once and by way of float32 they would differ."""
    count, bits = 400_000, {torch.float16: 11, torch.bfloat16: 8}[dtype]

    def rounded_once(x: torch.Tensor) -> torch.Tensor:
        mantissa, exponent = torch.frexp(x)
        return torch.ldexp(torch.round(torch.ldexp(mantissa, torch.tensor(bits))), exponent - bits)

    draw = torch.Generator().manual_seed(1)
    spread = 2.0 ** torch.randint(-20, 20, (count,), generator=draw)
    scale = (torch.rand(count, generator=draw) + 1).to(dtype)
    zero = (torch.randn(count, generator=draw) * spread).to(dtype)
    exact = torch.randint(-8, 8, (count,), generator=draw).double() * scale.double() + zero.double()
    differs = rounded_once(exact) != exact.float().to(dtype).double()
    assert differs.any()
    for one, other in zip(scale[differs], zero[differs], strict=True):
        assert not packed_fields_triton.sums_exactly(one, other)
