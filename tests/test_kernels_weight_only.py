"""Kernels that read packed weights, against references of unpacked ones: dequantized weights, products."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from enginesmith.convert.numbers.nibbles import pack_rows
from enginesmith.convert.targets.trtllm import packing
from enginesmith.plugins import fragments, qserve_gemm
from enginesmith.plugins import weight_only_groupwise_quant_matmul as groupwise
from enginesmith.plugins import weight_only_quant_matmul as by_channel
from enginesmith.plugins.packing import layout_of

pytest.importorskip("triton")

from enginesmith.plugins import (
    packed_product_triton,
    qserve_gemm_triton,
    weight_only_groupwise_quant_matmul_triton,
    weight_only_quant_matmul_triton,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ARRANGED_FOR = {"sm80": 80, "sm90": 90, "fp8": 89}
KINDS = (("rows", 4), ("sm80", 4), ("sm90", 4), ("sm80", 8), ("sm90", 8), ("fp8", 4))
DTYPES = (torch.float16, torch.bfloat16)
DRAW = torch.Generator().manual_seed(0)


def integers(out: int, channels: int, bits: int) -> torch.Tensor:
    half = 2 ** (bits - 1)
    drawn = torch.randint(-half, half, (out, channels), generator=DRAW).to(torch.int8)
    drawn[0] = 0
    drawn[1, ::2], drawn[1, 1::2] = -half, half - 1
    return drawn


def packed(weight: torch.Tensor, bits: int, layout: str, dtype: torch.dtype = torch.int8) -> torch.Tensor:
    if layout == "rows":
        return pack_rows(weight)
    return packing.pack(weight, layout_of(bits, layout == "fp8"), ARRANGED_FOR[layout], dtype)


def normal(*shape: int, dtype: torch.dtype, size: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, generator=DRAW) * size).to(dtype)


def scales(groups: int, out: int, dtype: torch.dtype) -> torch.Tensor:
    """Of every size: subnormal, ordinary, and such that products overflow float16."""
    sizes = 2.0 ** torch.randint(-24, 15, (groups, out), generator=DRAW)
    return (sizes * (1 + torch.rand(groups, out, generator=DRAW))).to(dtype)


def on_device(*tensors: torch.Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.to(DEVICE) for tensor in tensors]


def assert_close(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Within the kernels' bound of the exact sum, and half a step of the output's dtype."""
    x, weight = x.double(), weight.double()
    exact = x @ weight.t() + (0 if bias is None else bias.double())
    bound = packed_product_triton.ERROR * x.shape[1] * (x.abs() @ weight.abs().t() + exact.abs())
    bound = bound + torch.finfo(y.dtype).eps / 2 * (exact.abs() + bound) + torch.finfo(y.dtype).smallest_normal
    assert y.shape == exact.shape
    assert bool(((y.double().cpu() - exact).abs() <= bound).all())


# On a CPU some shapes are those of a few layouts. Of one token, 2,112 channels are more than threads read at once.
FEW = {(1, 64, 2112, 64): 1, (10, 64, 384, 64): 2, (17, 64, 192, 64): 2}
# Every layout is read by one token, by few and by many; every schedule reads lines of one output and of two.
GROUPWISE: list[Any] = [
    (*kind, *shape)
    for shape in (
        (1, 64, 384, 128),
        (1, 64, 2112, 64),
        (3, 64, 320, 64),
        (10, 64, 384, 64),
        (17, 64, 192, 64),
        (65, 64, 128, 64),
    )
    for kind in (KINDS[: FEW.get(shape, 6)] if DEVICE == "cpu" else KINDS)
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layout", "bits", "tokens", "out", "channels", "group"), GROUPWISE)
def test_groupwise_products(
    layout: str, bits: int, dtype: torch.dtype, tokens: int, out: int, channels: int, group: int
) -> None:
    if layout == "fp8" and channels % 128:
        channels += 64
    weight, groups = integers(out, channels, bits), channels // group
    bytes_ = packed(weight, bits, layout, torch.int8 if layout == "rows" else dtype)
    x, p, bias = (normal(*shape, dtype=dtype) for shape in ((tokens, channels), (1, channels), (out,)))
    x[-1] = 0
    scale = normal(groups, out, dtype=dtype, size=0.1).abs()
    zero = normal(groups, out, dtype=dtype, size=0.3)
    run = weight_only_groupwise_quant_matmul_triton.run
    for p_, z, b, sm in ((p, None, None, 80), (None, zero, bias, 90)):
        y = run(*on_device(x, bytes_, scale, p_, z, None, b), bits=bits, layout=layout, sm=sm)
        assert_close(y, x if p_ is None else x * p_, groupwise.dequantized(weight, scale, z, sm), b)
        turned = scale.t().contiguous().t(), None if z is None else z.t().contiguous().t()
        if tokens == 10:
            again = run(*on_device(x, bytes_, turned[0], p_, turned[1], None, b), bits=bits, layout=layout, sm=sm)
            assert torch.equal(y, again)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layout", "bits"), KINDS[1:5])
@pytest.mark.parametrize(("tokens", "out", "channels"), [(2, 64, 1024), (16, 64, 192)])
def test_products_per_channel(layout: str, bits: int, dtype: torch.dtype, tokens: int, out: int, channels: int) -> None:
    weight = integers(out, channels, bits)
    x, scale = normal(tokens, channels, dtype=dtype), normal(out, dtype=dtype, size=0.1).abs()
    y = weight_only_quant_matmul_triton.run(
        *on_device(x, packed(weight, bits, layout), scale), bits=bits, layout=layout
    )
    assert_close(y, x, by_channel.dequantized(weight, scale))
    if tokens > 4:
        wanted = by_channel.reference(x, weight, scale, bits, ARRANGED_FOR[layout])
        assert torch.allclose(y.cpu(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-2)


@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize("layout", ["fp8", "sm90"])
def test_weights_that_become_fp8(tokens: int, layout: str) -> None:
    weight, scale = integers(64, 256, 4), normal(2, 64, dtype=torch.float16, size=20).abs()
    x, p = normal(tokens, 256, dtype=torch.float16, size=9), normal(256, dtype=torch.float16).abs()
    alpha, bias = torch.tensor([0.01]), normal(64, dtype=torch.float16)
    run = weight_only_groupwise_quant_matmul_triton.run
    y = run(*on_device(x, packed(weight, 4, layout), scale, p, None, alpha, bias), bits=4, layout=layout).cpu()
    padded = torch.cat([x, x.new_zeros(8, 256)])
    wanted = groupwise.reference(padded, weight, scale, p, alpha=alpha, bias=bias, bits=4, sm=89)[:tokens]
    assert torch.allclose(y, wanted, rtol=2**-9, atol=1e-2)


QSERVE_SHAPES: list[Any] = [(1, 64, 256), (17, 128, 128), (70, 32, 384)]
QSERVE_LARGE = [
    pytest.param(tokens, out, channels, marks=pytest.mark.gpu)
    for tokens, (out, channels) in itertools.product((1, 64, 300), ((4096, 14336), (14336, 4096)))
]


@pytest.mark.parametrize(("tokens", "out", "channels"), QSERVE_SHAPES + QSERVE_LARGE)
def test_qserve_is_equal(tokens: int, out: int, channels: int) -> None:
    weight = torch.randint(0, 16, (out, channels), generator=DRAW).to(torch.int8)
    s2, z2 = (torch.randint(-128, 128, (out, channels // 128), generator=DRAW).to(torch.int8) for _ in range(2))
    x = torch.randint(-128, 128, (tokens, channels), generator=DRAW).to(torch.int8)
    x[-1], weight[0] = -128, 15
    s_x, sums = (normal(tokens, 1, dtype=torch.float16, size=size).abs() for size in (0.01, 3))
    s1, szeros = (normal(out, dtype=torch.float16, size=size).abs() for size in (0.01, 0.3))
    bytes_, scale, zero = fragments.pack(weight), fragments.by_group(s2), fragments.by_group(z2)
    y = qserve_gemm_triton.run_per_group(*on_device(x, s_x, bytes_, s1, scale, zero)).cpu()
    assert torch.equal(y, qserve_gemm.reference_per_group(x, s_x, weight, s1, s2, z2))
    y = qserve_gemm_triton.run_per_channel(*on_device(x, s_x, sums, bytes_, s1, szeros)).cpu()
    assert torch.equal(y, qserve_gemm.reference_per_channel(x, s_x, sums, weight, s1, szeros))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layout", "bits"), KINDS)
@pytest.mark.parametrize(("out", "channels"), [(4096, 4096), (14336, 4096), (4096, 14336)])
def test_large_products(layout: str, bits: int, dtype: torch.dtype, out: int, channels: int) -> None:
    weight, scale = integers(out, channels, bits), normal(channels // 128, out, dtype=dtype, size=0.01).abs()
    bytes_ = packed(weight, bits, layout)
    wanted = groupwise.dequantized(weight, scale)
    for tokens in (1, 2, 4, 5, 16, 64, 100):
        x = normal(tokens, channels, dtype=dtype)
        arguments = on_device(x, bytes_, scale)
        y = weight_only_groupwise_quant_matmul_triton.run(*arguments, bits=bits, layout=layout)
        assert_close(y, x, wanted)
        assert torch.equal(y, weight_only_groupwise_quant_matmul_triton.run(*arguments, bits=bits, layout=layout))
