"""Statistics of one layer, passed at once or walked through while it is quantized."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.job.quantization import quantization_of
from enginesmith.convert.models.forward import LayerForward
from enginesmith.convert.models.layer import Layer
from enginesmith.convert.quantize.quantizer import Quantizer
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.statistics import calibrate
from enginesmith.convert.statistics.calibrate import Walk, calibrate_layer
from enginesmith.convert.statistics.layer import LayerStatistics
from enginesmith.convert.statistics.wanted import EVERYTHING
from enginesmith.convert.statistics.watch import largest
from enginesmith.convert.targets.trtllm.target import TensorRTLLM

from .conftest import write_model
from .family_models import write_family

CPU = torch.device("cpu")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
# One of each arrangement, and what else changes the way through a layer.
TITLES = (
    "Llama, Yi, DeepSeek-LLM, SmolLM", "Qwen3", "Gemma 2", "Phi-3, Phi-3.5, Phi-4", "GPT-2", "BLOOM, BLOOMZ", "GPT-J",
    "GPT-NeoX, Pythia, Dolly", "Cohere Command R+",
)  # fmt: skip


@pytest.fixture(params=TITLES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    return Source(write_family(tmp_path / "hf", request.param))


def forward_of(source: Source, scaled: bool = True) -> LayerForward:
    return LayerForward(source.model, 24, torch.float32, CPU, scaled)


def tokens(source: Source) -> torch.Tensor:
    """Hidden states of five sequences."""
    return torch.randn(5, 24, source.model.hidden_size, generator=torch.Generator().manual_seed(0))


def assert_same(one: LayerStatistics, other: LayerStatistics) -> None:
    assert one.inputs.keys() == other.inputs.keys()
    for name, inputs in one.inputs.items():
        for field in ("amax", "tokens", "weight", "gram", "magnitude"):
            assert torch.equal(getattr(inputs, field), getattr(other.inputs[name], field)), (name, field)
    assert one.output_amax.keys() == other.output_amax.keys()
    assert all(torch.equal(y, other.output_amax[part]) for part, y in one.output_amax.items())
    assert one.stream_amax == other.stream_amax
    for field in ("key_amax", "value_amax", "query_amax"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field


@pytest.mark.parametrize("waiting", [10**9, 30_000, 0])
def test_a_walk_through_a_layer_that_stays_is_a_pass(
    waiting: int, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever tokens wait: all inside the layer, some, or none."""
    monkeypatch.setattr(calibrate, "WAITING_BYTES", waiting)
    passed, walked, done = tokens(source), tokens(source), list[int]()
    forward = forward_of(source)
    forward.load(0, source.layer(0))
    seen = calibrate_layer(forward, passed, EVERYTHING, 0, 2, done.append)
    assert done == [48, 48, 24]
    walk = Walk(forward_of(source), 0, Layer.of(source.layer(0), source.model), walked, EVERYTHING, 0, 2, done.append)
    groups = list(walk.groups())
    assert groups == list(source.model.family.groups)
    assert sum(done) == 2 * 5 * 24
    assert torch.equal(walked, passed)
    assert_same(walk.seen, seen)
    assert not torch.equal(passed, tokens(source))


@pytest.mark.parametrize("waiting", [10**9, 30_000, 0])
def test_linears_see_what_the_quantized_ones_before_them_compute(
    waiting: int, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every group's input is that of a layer whose earlier groups have become something else, and whose later ones
    have not."""
    monkeypatch.setattr(calibrate, "WAITING_BYTES", waiting)
    layer, hidden, draw = Layer.of(source.layer(0), source.model), tokens(source), torch.Generator().manual_seed(1)
    walk = Walk(forward_of(source), 0, layer, hidden, EVERYTHING, 0, 2)
    family, changed = source.model.family, Layer.of(source.layer(0), source.model)
    for group in walk.groups():
        expected, known = pass_through(source, changed), walk.seen.inputs[group.name]
        assert torch.equal(known.gram_matrix(), expected.inputs[group.name].gram_matrix()), group.name
        assert [*walk.seen.inputs] == [one.name for one in family.groups[: family.groups.index(group) + 1]]
        for part in family.parts(group):
            noise = 0.1 * torch.randn(layer.weights[part].shape, generator=draw)
            layer.weights[part] = changed.weights[part] = layer.weights[part] + noise
    behind = tokens(source)
    after = pass_through(source, changed, behind)
    assert torch.equal(hidden, behind)
    assert walk.seen.output_amax.keys() == after.output_amax.keys()
    assert all(torch.equal(y, after.output_amax[part]) for part, y in walk.seen.output_amax.items())


def pass_through(source: Source, layer: Layer, hidden: torch.Tensor | None = None) -> LayerStatistics:
    forward = forward_of(source)
    forward.load(0, layer.computed())
    return calibrate_layer(forward, tokens(source) if hidden is None else hidden, EVERYTHING, 0, 2)


def test_inputs_that_are_divided_later_are_seen_undivided(source: Source) -> None:
    """AWQ divides an input in its norm, or at run time: a layer that computes the same is walked through the same."""
    layer, hidden, expected = Layer.of(source.layer(0), source.model), tokens(source), tokens(source)
    seen = pass_through(source, layer, expected)
    walk = Walk(forward_of(source), 0, layer, hidden, EVERYTHING, 0, 2)
    for group in walk.groups():
        s = torch.rand(layer.weights[source.model.family.parts(group)[0]].shape[1]) + 0.5
        layer.scale_input(group, s)
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)
    for name, inputs in seen.inputs.items():
        torch.testing.assert_close(walk.seen.inputs[name].amax, inputs.amax, rtol=1e-4, atol=1e-4)


def test_ranges_of_a_cache_are_known_before_the_first_group_changes(source: Source) -> None:
    layer = Layer.of(source.layer(0), source.model)
    seen = pass_through(source, layer)
    walk = Walk(forward_of(source), 0, layer, tokens(source), EVERYTHING, 0, 2)
    for group in walk.groups():
        for part in source.model.family.parts(group):
            layer.weights[part] = layer.weights[part] * 2
        for field in ("key_amax", "value_amax", "query_amax"):
            assert torch.equal(getattr(walk.seen, field), getattr(seen, field)), field


def test_a_layer_with_scaled_queries_computes_what_the_source_does(tmp_path: Path) -> None:
    """Yarn's attention factor is in the tables of the float model, and in the queries of what an engine computes."""
    model = write_model(tmp_path / "hf", rope_scaling=YARN, torch_dtype="float32")
    source = Source(model)
    quantizer = Quantizer(quantization_of(ConvertOptions(str(model), "", quant="W8A16"), source, TensorRTLLM))
    passed, walked, forward = tokens(source), tokens(source), forward_of(source)
    assert forward.attention_scaling > 1.1
    forward.load(0, source.layer(0))
    calibrate_layer(forward, passed, EVERYTHING, 0, 2)
    walk = Walk(forward_of(source, scaled=False), 0, quantizer.float_layer(source.layer(0)), walked, EVERYTHING, 0, 2)
    assert len(list(walk.groups())) == 4
    torch.testing.assert_close(walked, passed, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("odd", [0.0, float("inf"), -float("inf"), float("nan"), -float("nan"), -1e-7])
def test_the_largest_size_along_an_axis(odd: float, dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[1, 2, 3] = odd
    for axis in (0, 1, 2):
        torch.testing.assert_close(largest(x, axis), x.abs().amax(axis), rtol=0, atol=0, equal_nan=True)
