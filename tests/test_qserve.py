"""QServe: what progressive quantization promises the kernel, and where the kernel looks for each value."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.models.families.llama import LLAMA
from enginesmith.convert.numbers.qserve import per_channel, per_group
from enginesmith.convert.numbers.quantized import QuantizedLinear
from enginesmith.convert.numbers.rounding import Grid
from enginesmith.convert.targets.trtllm.formats import format_of, scheme_of
from enginesmith.convert.targets.trtllm.formats.base import Engine, Format
from enginesmith.plugins import qserve_gemm, quantize_per_token
from enginesmith.plugins.fragments import pack, unpack

from .conftest import DATA, GOLDEN

DENSE = LLAMA.linear("attention.dense")
PER_GROUP, PER_CHANNEL = (
    format_of(scheme_of(name), Engine("float16")) for name in ("W4A8_QSERVE_PER_GROUP", "W4A8_QSERVE_PER_CHANNEL")
)


def packed(form: Format, made: QuantizedLinear) -> dict[str, torch.Tensor]:
    """A linear's tensors as a file holds them."""
    specs = form.tensors(DENSE, LLAMA.group_of(DENSE.name))
    return {suffix: specs[suffix].storage.store(tensor) for suffix, tensor in form.store(made).items()}


def unpacked(form: Format, held: dict[str, torch.Tensor]) -> QuantizedLinear:
    """The inverse of ``packed``."""
    specs = form.tensors(DENSE, LLAMA.group_of(DENSE.name))
    return form.read({suffix: specs[suffix].storage.read(tensor) for suffix, tensor in held.items()})


def weights(out: int = 128, in_: int = 256) -> torch.Tensor:
    """Normal rows, and rows that are skewed, one-sided, tiny, spiked or zero."""
    weight = torch.randn(out, in_, generator=torch.Generator().manual_seed(0))
    weight[1] += 2
    weight[2] = weight[2].abs()
    weight[3] = -weight[3].abs()
    weight[4] *= 1e-6
    weight[5, 0] = 100
    weight[6] = 0
    weight[7] = torch.sign(weight[7])
    return weight


def test_progressive_integers_stay_within_their_bytes() -> None:
    quantized = per_group(weights())
    k4, s2, zero = quantized.values.int(), quantized.scale.int(), quantized.zero.int()
    assert (k4 >= 0).all()
    assert (k4 <= 15).all()
    assert (zero >= 0).all()
    assert (zero <= 15).all()
    assert (s2 >= 1).all()
    assert (s2 <= 16).all()
    k4, s2, zero = k4.view(128, 2, 128), s2[..., None], zero[..., None]
    assert (k4 * s2).max() <= 255
    unfolded = (k4 - zero) * s2
    assert unfolded.abs().max() <= 127
    assert torch.equal(unfolded.flatten(1).float() * quantized.second.float()[:, None], quantized.dequantize())


def test_progressive_error_is_near_that_of_one_step() -> None:
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(1))
    one_step = Grid.of(weight, 128, 4, symmetric=False).round(weight).dequantize()
    assert (per_group(weight).dequantize() - weight).norm() < 1.1 * (one_step - weight).norm()
    assert not per_group(weights()).dequantize()[6].any()


def test_the_better_of_two_whole_scales_is_taken() -> None:
    weight = weights()
    ours = (per_group(weight).dequantize() - weight).square().sum()
    quantized = per_group(weight)
    k8 = (weight / quantized.second.float()[:, None]).round().clamp(-119, 119).view(128, 2, 128)
    least, largest = k8.amin(2).clamp_max(0), k8.amax(2).clamp_min(0)
    s2 = ((largest - least) / 15).round().clamp_min(1)
    zero = (-least / s2).round().clamp(0, 15)
    k4 = ((k8 / s2[..., None]).round() + zero[..., None]).clamp(0, 15)
    k4, s2, zero = (whole.to(torch.int8) for whole in (k4.flatten(1), s2, zero))
    nearest = QuantizedLinear(k4, s2, zero, quantized.second)
    assert ours <= (nearest.dequantize() - weight).square().sum() * 1.001


def test_per_channel_values_are_within_half_a_step() -> None:
    weight = weights()
    quantized = per_channel(weight)
    normal = weight.abs().amax(1) > 1e-3
    away = (PER_CHANNEL.weight(PER_CHANNEL.store(quantized)) - weight).abs()[normal]
    # Float16 scales, up to 2^-11 off, cost as much again at the end of 15 steps; zero is rounded too.
    assert (away <= quantized.scale.float()[normal, None] * 1.02).all()
    assert (away <= quantized.scale.float()[normal, None] * 0.52).float().mean() > 0.99
    assert quantized.values.min() >= 0
    assert quantized.values.max() <= 15


def test_stored_bytes_equal_upstream() -> None:
    golden = load_file(GOLDEN / "golden_qserve.safetensors")
    groups = QuantizedLinear(golden["integers"], golden["s2"], golden["zero"], golden["s1"])
    channels = QuantizedLinear(golden["integers"], golden["s1"], golden["channel_zero"])
    for name, stored in (("per_group", packed(PER_GROUP, groups)), ("per_channel", packed(PER_CHANNEL, channels))):
        for suffix, tensor in stored.items():
            assert torch.equal(tensor, golden[f"{name}.{suffix}"]), suffix


def slow_pack(integers: torch.Tensor) -> torch.Tensor:
    """Byte by byte: lane 4 r + c of a 32 x 32 tile holds 16 bytes, of rows r, r + 8 (+ 16) and columns 4c.. (+ 16)."""
    out, in_ = integers.shape
    stream = []
    for tile_row in range(0, out, 32):
        for tile_column in range(0, in_, 32):
            for lane in range(32):
                row, column = tile_row + lane // 4, tile_column + lane % 4 * 4
                for column_half in (0, 16):
                    for row_eight in (0, 8):
                        for i in range(4):
                            low = int(integers[row + row_eight, column + column_half + i])
                            high = int(integers[row + row_eight + 16, column + column_half + i])
                            stream.append(low | high << 4)
    return torch.tensor(stream, dtype=torch.uint8).view(torch.int8).view(out, in_ // 2)


def test_packing_by_hand_and_back() -> None:
    integers = torch.randint(0, 16, (64, 96), dtype=torch.int8)
    packed = pack(integers)
    assert torch.equal(packed, slow_pack(integers))
    assert torch.equal(unpack(packed), integers)


def test_stored_tensors_read_back() -> None:
    groups, channels = per_group(weights()), per_channel(weights())
    again = unpacked(PER_GROUP, packed(PER_GROUP, groups))
    for name in ("values", "scale", "zero", "second"):
        assert torch.equal(getattr(again, name), getattr(groups, name)), name
    again_channels = unpacked(PER_CHANNEL, packed(PER_CHANNEL, channels))
    for name in ("values", "scale", "zero"):
        assert torch.equal(getattr(again_channels, name), getattr(channels, name)), name


def test_scales_lie_by_group_and_eights() -> None:
    groups = per_group(weights())
    stored = packed(PER_GROUP, groups)
    for group in range(2):
        for position in range(128):
            channel = position // 32 * 32 + position % 4 * 8 + position % 32 // 4
            assert stored["s2_scales"][group, position] == groups.scale[channel, group]
            product = int(groups.zero[channel, group]) * int(groups.scale[channel, group])
            assert int(stored["s2_zeros"][group, position]) % 256 == -product % 256


def test_names_and_shapes_are_those_of_the_manifest() -> None:
    manifest = json.loads((DATA / "llama.json").read_text())
    weight = torch.randn(512, 512)
    for algo, stored in (
        ("W4A8_QSERVE_PER_GROUP", packed(PER_GROUP, per_group(weight))),
        ("W4A8_QSERVE_PER_CHANNEL", packed(PER_CHANNEL, per_channel(weight))),
    ):
        found = [c for c in manifest["cases"] if (c["algo"], c["map"]) == (algo, "tp1")]
        declared = manifest["param_tables"][found[0]["params"]]["layer"]
        ours = {f"attention.dense.{n}": [list(t.shape), str(t.dtype)[6:]] for n, t in stored.items()}
        assert ours == {n: e[:2] for n, e in declared.items() if n.startswith("attention.dense.")}


def test_references_execute_the_weight() -> None:
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(1))
    x = torch.randn(9, 256, generator=torch.Generator().manual_seed(2)).half()
    quantized, scale = quantize_per_token.reference(x)
    sums = x.float().sum(1, keepdim=True).half()
    groups, channels = per_group(weight), per_channel(weight)
    stored = PER_GROUP.store(groups)
    scaled_zero = (-groups.zero * groups.scale).to(torch.int8)
    assert torch.equal(stored["s2_zeros"], scaled_zero)
    weights = groups.values, groups.second, groups.scale, scaled_zero
    y = qserve_gemm.reference_per_group(quantized, scale.half(), *weights)
    activation = quantized.double() * scale.double()
    expected = activation @ groups.dequantize().double().t()
    torch.testing.assert_close(y.double(), expected, rtol=2e-3, atol=2e-2)
    szeros = PER_CHANNEL.store(channels)["s1_szeros"]
    y = qserve_gemm.reference_per_channel(quantized, scale.half(), sums, channels.values, channels.scale, szeros)
    expected = activation @ (channels.values.double() * channels.scale.double()[:, None]).t()
    expected -= x.double().sum(1, keepdim=True) * (channels.zero.double() * channels.scale.double())
    torch.testing.assert_close(y.double(), expected, rtol=2e-3, atol=5e-2)
    exact = x.double() @ PER_CHANNEL.weight(PER_CHANNEL.store(channels)).double().t()
    assert (y.double() - exact).norm() < 0.05 * exact.norm()
    assert y.dtype == torch.float16
    assert packed(PER_GROUP, groups)["weight"].shape == (128, 128)


@pytest.mark.parametrize(
    ("out", "in_", "message"),
    [
        (192, 128, "out_features 192 must be a multiple of 128 for QServe; sizes that work: 128, 256"),
        (128, 64, "in_features 64 must be a multiple of 128 for QServe; sizes that work: 128"),
    ],
)
def test_shapes_that_no_kernel_takes(out: int, in_: int, message: str) -> None:
    with pytest.raises(InputError, match=rf"^mlp\.fc\.weight: {message}"):
        PER_GROUP.check(out, in_, "mlp.fc.weight")
    PER_CHANNEL.check(128, 128, "mlp.fc.weight")
