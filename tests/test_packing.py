"""Weight layouts against bytes that TensorRT-LLM 0.16's own packers wrote."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.numbers.nibbles import pack_rows
from enginesmith.convert.numbers.rounding import weight_only
from enginesmith.convert.targets.trtllm.packing import check, pack, unpack
from enginesmith.plugins.nibbles import pack_nibbles, unpack_nibbles, unpack_rows
from enginesmith.plugins.packing import INT4, INT4_FP8, INT8, Layout

from .conftest import GOLDEN

LAYOUTS = {"int8": INT8, "int4": INT4, "int4_fp8act": INT4_FP8}
GEMM = load_file(GOLDEN / "golden_mixed_gemm.safetensors")
SYMMETRIC = load_file(GOLDEN / "golden_symmetric_quantize.safetensors")


def logical(stored: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The goldens' row-major [in, out] bytes as int8 [out, in]."""
    return (unpack_nibbles(stored) if layout.bits == 4 else stored).mT.contiguous()


@pytest.mark.parametrize("name", [name for name in GEMM if not name.endswith(".input")])
def test_mixed_gemm_layout_equals_upstream(name: str) -> None:
    kind, shape, sm = name.split(".")
    layout, theirs = LAYOUTS[kind], GEMM[name]
    integers = logical(GEMM[f"{kind}.{shape}.input"], layout)
    # Identical at SM 75, 80, 86 and 89; FP8 activations exist on the last alone. Experts at SM 90 are as at 80.
    generations = {"sm90": [90], "sm80": [89] if layout is INT4_FP8 else [75, 80, 86, 89]}[sm]
    for generation in generations + [90] * ("moe" in shape):
        packed = pack(integers, layout, generation)
        assert torch.equal(packed, theirs)
        assert torch.equal(unpack(packed, layout, generation), integers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bytes_viewed_as_the_model_dtype_come_back(dtype: torch.dtype) -> None:
    integers = torch.randint(-8, 8, (128, 64), dtype=torch.int8)
    packed = pack(integers, INT4, 80, dtype)
    assert (packed.shape, packed.dtype) == ((64, 32), dtype)
    assert torch.equal(unpack(packed, INT4, 80), integers)
    assert torch.equal(unpack(packed.t().contiguous().t(), INT4, 80), integers)  # however its rows lie


@given(
    kind=st.sampled_from(sorted(LAYOUTS)),
    sm=st.sampled_from([70, 72, 75, 80, 86, 89, 90]),
    k=st.integers(1, 3),
    n=st.integers(1, 3),
    experts=st.integers(0, 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_unpack_inverts_pack(kind: str, sm: int, k: int, n: int, experts: int, seed: int) -> None:
    layout = LAYOUTS[kind]
    sm = 89 if layout is INT4_FP8 and sm < 89 else sm
    limit = 2 ** (layout.bits - 1)
    shape = (experts,) * (experts > 0) + (64 * n, 128 * k)
    integers = torch.randint(-limit, limit, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    packed = pack(integers, layout, sm)
    assert packed.shape[-2:] == (128 * k, 64 * n * layout.bits // 8)
    assert torch.equal(unpack(packed, layout, sm), integers)


def test_volta_reads_transposed_biased_words() -> None:
    integers = torch.arange(-128, 128).view(2, 128).repeat(16, 1).to(torch.int8)
    words = pack(integers, INT8, 70).view(torch.uint8).view(-1, 4)
    assert words[0].tolist() == [0, 2, 1, 3]
    assert words[32].tolist() == [128, 130, 129, 131]


@pytest.mark.parametrize("name", [name for name in SYMMETRIC if name.endswith(".integers")])
def test_weight_only_rounding_equals_upstream(name: str) -> None:
    case, kind, _ = name.rsplit(".", 2)
    layout, weight = LAYOUTS[kind], SYMMETRIC[f"{case}.weight"]
    rounded = weight_only(weight.t().float().contiguous(), layout.bits)
    assert torch.equal(rounded.values, logical(SYMMETRIC[name], layout))
    assert torch.equal(rounded.scale[:, 0].to(weight.dtype), SYMMETRIC[f"{case}.{kind}.scales"])
    assert torch.equal(pack(rounded.values, layout, 80), SYMMETRIC[f"{case}.{kind}.packed_sm80"])


def test_every_golden_was_used() -> None:
    with safe_open(GOLDEN / "golden_mixed_gemm.safetensors", "pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == set(LAYOUTS)  # noqa: SIM118


def test_nibbles() -> None:
    packed = pack_nibbles(torch.tensor([[1, -1, -8, 7]], dtype=torch.int8))
    assert packed.view(torch.uint8).tolist() == [[0xF1, 0x78]]
    assert unpack_nibbles(packed).tolist() == [[1, -1, -8, 7]]


def test_awq_rows_share_a_byte() -> None:
    integers = torch.randint(-8, 8, (6, 5), dtype=torch.int8)
    packed = pack_rows(integers)
    assert packed.shape == (3, 5)
    assert torch.equal(packed << 4 >> 4, integers[0::2])
    assert torch.equal(packed >> 4, integers[1::2])
    assert torch.equal(unpack_rows(packed), integers)
    with pytest.raises(InputError, match=r"mlp\.fc\.weight: .*even, not 3"):
        pack_rows(integers[:3], "mlp.fc.weight")


@pytest.mark.parametrize(
    ("layout", "sm", "out", "in_", "message"),
    [
        (INT8, 80, 33, 64, "out_features 33 must be a multiple of 32 .* sizes that work: 32, 64"),
        (INT8, 80, 64, 96, "in_features 96 must be a multiple of 64 .* sizes that work: 64, 128"),
        (INT4, 90, 64, 32, "in_features 32 must be a multiple of 64 .* sizes that work: 64"),
        (INT4_FP8, 89, 64, 64, "in_features 64 must be a multiple of 128 .* sizes that work: 128"),
        (INT4, 80, 0, 64, "out_features 0 .* sizes that work: 64"),
        (INT4_FP8, 80, 64, 128, "FP8 activations need SM 89 or 90, not SM 80"),
        (INT8, 100, 64, 64, "no int8 weight layout for SM 100"),
    ],
)
def test_shapes_that_no_kernel_takes(layout: Layout, sm: int, out: int, in_: int, message: str) -> None:
    with pytest.raises(InputError, match=rf"^mlp\.fc\.weight: {message}"):
        check(layout, sm, (out, in_), "mlp.fc.weight")


def test_shape_rules_admit_what_they_say() -> None:
    check(INT8, 90, (32, 32))
    check(INT8, 75, (32, 64))
    with pytest.raises(InputError, match="in_features 32 must be a multiple of 64"):
        check(INT8, 90, (4, 32, 32))
