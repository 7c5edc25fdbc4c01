"""What a quantized layer is believed to compute is its plugins' arithmetic; what verify says of few tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from enginesmith.convert.job.algorithms import of_algorithm
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.models.families import FAMILIES
from enginesmith.convert.numbers import gptq
from enginesmith.convert.numbers.rounding import Grid
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.runtime import ENGINE_NAMES, FUNCTIONS
from enginesmith.convert.prove.verify import measure
from enginesmith.convert.quantize.layer import QuantizedLayer
from enginesmith.convert.quantize.quantizer import Quantizer
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.statistics.stream import Calibration
from enginesmith.convert.targets.trtllm.formats import format_of
from enginesmith.convert.targets.trtllm.formats.base import Activation, Engine, Format
from enginesmith.convert.targets.trtllm.target import TensorRTLLM
from enginesmith.plugins import gated_activation
from enginesmith.plugins.weight_only_groupwise_quant_matmul import dequantized

from .command import run
from .test_formats import FORMATS, WIDE, group_size

Tiny = Callable[..., Path]
Converted = Callable[..., Checkpoint]
Tensors = dict[str, torch.Tensor]
CPU = torch.device("cpu")


def quantized_layer(folder: Path, algorithm: str, **options: Any) -> tuple[TensorRTLLM, QuantizedLayer]:
    """The first layer of a model, quantized behind float ones."""
    source = Source(folder)
    how, target = of_algorithm(algorithm, ConvertOptions(str(folder), "", **options), source)
    quantizer = Quantizer(how)
    tensors = quantizer.rotated(source.layer(0, CPU))
    ids = load_file(folder.parent / "ids.safetensors")["input_ids"]
    calibration = Calibration(source.model, ids, quantizer.embedding(source, CPU), quantizer.wanted, CPU, 0)
    statistics = calibration.layer(0, tensors)
    return target, quantizer.quantize(0, quantizer.float_layer(tensors), statistics, target.computed)


def alone(own: Tensors) -> Tensors:
    """A linear's tensors without what is done to its input, nor its bias."""
    names = ("prequant_scaling_factor", "activation_scaling_factor")
    ones = {name: torch.ones_like(own[name]) for name in names if name in own}
    return {name: tensor for name, tensor in own.items() if name != "bias"} | ones


def product_with_identity(form: Format, own: Tensors) -> torch.Tensor:
    """The plugin's weight: what it makes of the identity matrix, [out, in]."""
    every = torch.eye(own["weight"].shape[1])
    if form.scheme.activations and not form.scheme.static:
        kept = form.rounding(None).of(every)
        ones = torch.ones(len(every), 1)
        every = every.to(kept.x.dtype)
        return form.product(alone(own), Activation(every, ones.to(kept.scale.dtype), ones.half())).t()
    return form.product(alone(own), Activation(every)).t()


CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"dtype": "float16"}) for name in FORMATS),
    *((name, {"dtype": "bfloat16"}) for name in FORMATS if "QSERVE" not in name),
    *((name, {"dtype": "bfloat16", "sm": 90}) for name in ("W4A16_GPTQ", "W8A16_GPTQ")),
    ("W8A16_GPTQ", {"dtype": "bfloat16", "symmetric": True}),
    *((name, {"dtype": "float16", "rounding": "gptq"}) for name in ("W8A16", "W4A16_AWQ", "W4A8_AWQ")),
]


@pytest.mark.parametrize(("algo", "options"), CASES)
def test_a_layer_holds_the_weights_that_its_plugins_multiply_with(
    algo: str, options: dict[str, Any], tiny: Tiny
) -> None:
    folder = tiny(**WIDE, attention_bias=True)
    target, quantized = quantized_layer(folder, algo, group_size=group_size(algo), **options)
    layer, model, tensors = quantized.layer, target.precision.model, target.layer(0, quantized)
    form = format_of(target.precision.base, Engine(target.engine.dtype))  # whatever GPUs the file is for
    for linear in model.family.linears:
        prefix = f"{linear.name}."
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        got, held = product_with_identity(form, own), layer.weight(linear)
        # QServe and FP8 rowwise round what they return; the others return the float32 that the identity came in.
        assert torch.equal(got, held.to(got.dtype)), linear.name
        assert got.dtype == torch.float32 or not form.weight_only
        if "bias" in own:
            assert torch.equal(torch.cat([layer.biases[part] for part in linear.parts]), own["bias"].float())
        if "prequant_scaling_factor" in own:
            smoother = layer.smoothers[model.family.group_of(linear.name).name]
            torch.testing.assert_close(1 / smoother, own["prequant_scaling_factor"].float()[0], rtol=1e-6, atol=0)
    for name, weight in layer.norms.items():
        assert torch.equal(weight, tensors[name].float())


def output_error(weight: torch.Tensor, gram: torch.Tensor, grid: Grid, dtype: torch.dtype) -> float:
    """Of the weight that the engine makes of GPTQ's integers: the output's squared error over its energy."""
    rounded, offset = gptq.gptq(weight, gram, grid, act_order=True), grid.stored(dtype).offset
    assert offset is not None
    computed = dequantized(rounded.values, rounded.scale.t().to(dtype), offset.t().to(dtype)).float()
    return float(gptq.output_error(computed - weight, gram) / gptq.output_error(weight, gram))


def test_gptq_rounds_against_the_offsets_that_are_stored() -> None:
    """W8A16_GPTQ in bfloat16: a zero point's product is off by up to half a step, which GPTQ must see."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 256, generator=generator) + 0.5
    x = torch.randn(600, 64, generator=generator) @ torch.randn(64, 256, generator=generator)
    x += 0.3 * torch.randn(600, 256, generator=generator)
    dtype, gram = torch.bfloat16, x.t() @ x
    covering = Grid.of(weight, 64, 8, symmetric=False)
    believed = Grid(covering.stored(dtype).scale, covering.zero, covering.low, covering.high)
    assert output_error(weight, gram, covering.stored(dtype), dtype) < 0.9 * output_error(weight, gram, believed, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_way_of_rounding_knows_the_stored_offset(bits: int, dtype: torch.dtype) -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0)) + 0.4
    grid = Grid.of(weight, 64, bits, symmetric=False).stored(dtype)
    assert grid.offset is not None
    assert torch.equal(grid.offset, (-grid.zero * grid.scale).to(dtype).float())
    rounded = grid.round(weight)
    assert torch.equal(gptq.gptq(weight, torch.eye(128), grid).values, rounded.values)
    values = rounded.values.float().unflatten(1, (2, 64)) * grid.scale[..., None] + grid.offset[..., None]
    assert torch.equal(grid.snap(weight), values.flatten(1))
    inside = (rounded.values > grid.low) & (rounded.values < grid.high)
    away = (values.flatten(1) - weight).abs() / grid.scale.repeat_interleave(64, 1)
    assert float(away[inside].max()) <= 0.5001


def test_halves_are_rounded_to_even() -> None:
    scale = torch.tensor([[0.75], [0.3125]])
    weight = (torch.arange(-7.5, 7, 1).repeat(2, 1) * scale)[:, :14]
    grid = Grid(scale, None, -8, 7)
    expected = torch.arange(-7.5, 7, 1)[:14].round().to(torch.int8).repeat(2, 1)
    assert torch.equal(grid.round(weight).values, expected)
    assert torch.equal(gptq.gptq(weight, torch.eye(14), grid).values, expected)


@pytest.mark.parametrize("algo", ["W8A16", "W4A16_AWQ", "W4A16_GPTQ", "W4A8_AWQ"])
def test_verify_measures_what_few_tokens_cost(algo: str, tiny: Tiny, converted: Converted) -> None:
    model = tiny(**WIDE)
    found = {}
    for dtype in ("float16", "bfloat16"):
        checkpoint = converted(model, quant=algo, group_size=group_size(algo), dtype=dtype)
        accuracy = measure(checkpoint, model, str(model.parent / "ids.safetensors"), 2, 12)
        assert accuracy.few_tokens_error is not None
        assert accuracy.many_tokens_error is not None
        found[dtype] = accuracy.few_tokens_error, accuracy.many_tokens_error
    (few16, many16), (few_b16, many_b16) = found["float16"], found["bfloat16"]
    assert 4 * few16 < few_b16 < 16 * few16
    if algo == "W4A8_AWQ":
        assert min(many16, many_b16) > 0.01  # their activations are FP8
    else:
        assert 1e-4 < many16 < few16 < 2e-3
        assert 1e-3 < many_b16 < few_b16 < 2e-2


def test_verify_says_it_of_weight_only_schemes_alone(tiny: Tiny, converted: Converted) -> None:
    model = tiny(**WIDE)
    words = ["--reference", model, "--text", model.parent / "ids.safetensors", "--chunks", 2, "--seq_len", 12]
    weight_only = converted(model, quant="W8A16").folder
    assert "decoding: weight-only kernels for 1 to 4 tokens sum in float16" in run("verify", weight_only, *words).stdout
    accuracy = json.loads(run("verify", weight_only, *words, "--json").stdout)["accuracy"]
    assert accuracy["few_tokens_error"] > accuracy["many_tokens_error"] > 0
    other = converted(model, quant="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN").folder
    assert "decoding" not in run("verify", other, *words).stdout
    assert "few_tokens_error" not in json.loads(run("verify", other, *words, "--json").stdout)["accuracy"]


def test_every_activation_that_an_engine_has_is_executed_as_its_own() -> None:
    names = {name for family in FAMILIES for name in family.activations.values()}
    assert names <= ENGINE_NAMES.keys()
    assert {ENGINE_NAMES[name] for name in names} <= FUNCTIONS.keys() <= gated_activation.ACTIVATIONS.keys()
