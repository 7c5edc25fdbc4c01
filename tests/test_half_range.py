"""float16 inside a layer: what an engine could not hold is refused where a forward pass runs, and found by verify."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.models.forward import LayerForward
from enginesmith.convert.models.layer import Layer
from enginesmith.convert.models.pieces import INTERLEAVED
from enginesmith.convert.prove.execution import Accuracy
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import accuracy_failures, measure
from enginesmith.convert.quantize.layer import half_range
from enginesmith.convert.quantize.quantization import HALF_RANGE
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.statistics.calibrate import calibrate_layer
from enginesmith.convert.statistics.stream import check_range

from .command import run
from .conftest import TINY, write_model

CPU = torch.device("cpu")
PART = "model.layers.1.{}.weight"
# What is made large in layer 1, by how much, and what must be named: weights of parts, made of a model that works.
PLACES: list[tuple[dict[str, float], str]] = [
    ({"mlp.gate_proj": 3e2, "mlp.up_proj": 3e2, "mlp.down_proj": 1e-5}, "the input of mlp.proj"),
    ({"mlp.up_proj": 1e5, "mlp.down_proj": 1e-5}, "mlp"),
    ({"self_attn.v_proj": 2e5, "self_attn.o_proj": 1e-5}, "attention|v_proj"),
    ({"self_attn.q_proj": 2e5, "self_attn.k_proj": 1e-5}, "q_proj"),
    ({"self_attn.k_proj": 2e5, "self_attn.q_proj": 1e-5}, "k_proj"),
]
# Formats that calibrate and that leave these weights where they are.
CALIBRATED: list[dict[str, Any]] = [
    {"quant": "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "fold": False, "alpha": 0.0, "rotate": False},
    {"quant": "FP8"},
    {"quant": "W4A16_GPTQ", "group_size": 64},
    {"kv_cache": "INT8", "fold": False},
]


def large(folder: Path, changes: dict[str, float]) -> Path:
    """A bfloat16 model whose layer 1 makes values beyond float16, though its hidden states fit."""
    model = write_model(folder, torch_dtype="bfloat16", intermediate_size=128)
    weights = load_file(model / "model.safetensors")
    for part, factor in changes.items():
        weights[PART.format(part)] = weights[PART.format(part)] * factor
    save_file(weights, model / "model.safetensors")
    return model


def options_of(model: Path, folder: Path, **options: Any) -> ConvertOptions:
    calib = {"calib": str(model.parent / "ids.safetensors"), "calib_size": 8, "calib_seq_len": 24}
    return ConvertOptions(str(model), str(folder), **{"dtype": "float16", **calib, **options})


@pytest.mark.parametrize("options", CALIBRATED, ids=lambda options: options.get("quant", "none"))
@pytest.mark.parametrize(("changes", "named"), PLACES, ids=range(len(PLACES)))
def test_what_float16_cannot_hold_is_refused(
    changes: dict[str, float], named: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = large(tmp_path / "hf", changes)
    with pytest.raises(InputError, match=rf"layer 1: .*({named}).*beyond float16; use --dtype bfloat16") as caught:
        convert(options_of(model, tmp_path / "out", **options))
    assert "layer 1" in str(caught.value)
    assert not (tmp_path / "out").exists()
    convert(options_of(model, tmp_path / "wide", **{**options, "dtype": "bfloat16"}))


def test_an_infinity_in_float16_is_blamed_on_float16() -> None:
    with pytest.raises(InputError, match=r"layer 1 are not finite; .* in float16; use --dtype bfloat16"):
        check_range(float("inf"), "float16", 1)
    with pytest.raises(InputError, match="layer 1 are not finite; the model does not work on this text"):
        check_range(float("inf"), "bfloat16", 1)


def test_logits_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    """Those of the calibration text: a row that no token reaches is no reason."""
    model = write_model(tmp_path / "hf", torch_dtype="bfloat16", num_hidden_layers=1)
    weights = load_file(model / "model.safetensors")
    head = weights["lm_head.weight"]
    save_file(weights | {"lm_head.weight": head * 5e4}, model / "model.safetensors")
    with pytest.raises(InputError, match=r"a logit reaches .*, beyond float16; use --dtype bfloat16"):
        convert(options_of(model, tmp_path / "out", quant="FP8", rotate=False))
    convert(options_of(model, tmp_path / "wide", quant="FP8", dtype="bfloat16"))
    embedding = weights["model.embed_tokens.weight"]
    embedding[:, 0], weights["model.norm.weight"][0], head[3, 0] = 0, 0, 6e4
    save_file(weights, model / "model.safetensors")
    convert(options_of(model, tmp_path / "out", quant="FP8", rotate=False))


@pytest.mark.parametrize("quant", [None, "W8A16", "W4A16"])
@pytest.mark.parametrize(("changes", "named"), PLACES[:2], ids=["product", "up"])
def test_without_a_forward_pass_it_is_said_and_verify_finds_it(
    quant: str | None, changes: dict[str, float], named: str, tmp_path: Path
) -> None:
    model = large(tmp_path / "hf", changes)
    done = convert(options_of(model, tmp_path / "out", quant=quant))
    assert done.manifest["float16_range_checked"] is False
    accuracy = measure(Checkpoint(tmp_path / "out"), model, str(model.parent / "ids.safetensors"), 8, 24)
    assert accuracy.beyond is not None
    assert accuracy.beyond.startswith("layer 1: ")
    assert any("beyond float16; convert with --dtype bfloat16" in line for line in accuracy_failures(accuracy, None))


def test_an_overflow_that_saturation_hides_fails_verify(tmp_path: Path) -> None:
    """Static INT8 turns an infinity into 127: perplexity stays a number, the values are wrong."""
    model = write_model(tmp_path / "hf", torch_dtype="bfloat16", intermediate_size=128)
    quant = "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN"
    convert(options_of(model, tmp_path / "out", quant=quant))
    path = tmp_path / "out" / "rank0.safetensors"
    tensors = load_file(path)
    tensors["transformer.layers.2.mlp.proj.smoother"] *= 1e-6
    save_file(tensors, path)
    (tmp_path / "out" / "enginesmith.json").unlink()
    ids = str(model.parent / "ids.safetensors")
    accuracy = measure(Checkpoint(tmp_path / "out"), model, ids, 8, 24)
    assert accuracy.beyond == "layer 2: the smoothed input of mlp.proj is beyond float16"
    words = ("--text", ids, "--chunks", 8, "--seq_len", 24)
    shown = run("verify", tmp_path / "out", "--reference", model, *words, "--json", expect=1)
    verdict = json.loads(shown.stdout)
    assert verdict["accuracy"]["beyond_range"] == accuracy.beyond
    assert verdict["ok"] is False


def test_models_that_fit_are_told_so(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny(torch_dtype="float16", intermediate_size=128)
    assert convert(options_of(model, tmp_path / "a", quant="FP8")).manifest["float16_range_checked"] is True
    wide = convert(options_of(model, tmp_path / "b", quant="FP8", dtype="bfloat16"))
    assert wide.manifest["float16_range_checked"] is None
    ids = str(model.parent / "ids.safetensors")
    assert measure(Checkpoint(tmp_path / "a"), model, ids, 8, 24).beyond is None


def test_the_command_says_that_it_did_not_look(tiny: Callable[..., Path], tmp_path: Path) -> None:
    shown = run("convert", "--model_dir", tiny(torch_dtype="float16"), "--output_dir", tmp_path / "out")
    assert "not held against float16's range" in shown.stderr


def test_statistics_in_a_file_are_held_against_the_range_too(tmp_path: Path) -> None:
    model = large(tmp_path / "hf", PLACES[0][0])
    saved = str(tmp_path / "statistics")
    convert(options_of(model, tmp_path / "a", quant="FP8", dtype="bfloat16", save_stats=saved))
    with pytest.raises(InputError, match="beyond float16"):
        convert(options_of(model, tmp_path / "b", quant="FP8", stats=saved))


def test_smoothing_that_makes_room_is_seen(tmp_path: Path) -> None:
    """What the values are after folding counts, not what the source's were."""
    model = write_model(tmp_path / "hf", torch_dtype="bfloat16", intermediate_size=128)
    weights = load_file(model / "model.safetensors")
    weights[PART.format("mlp.up_proj")][0] *= 1e5
    weights[PART.format("mlp.down_proj")][:, 0] *= 1e-5
    save_file(weights, model / "model.safetensors")
    asked = {"quant": "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "alpha": 1.0}
    convert(options_of(model, tmp_path / "out", **asked))
    assert measure(Checkpoint(tmp_path / "out"), model, str(model.parent / "ids.safetensors"), 8, 24).beyond is None
    with pytest.raises(InputError, match=r"layer 1: .*beyond float16"):
        convert(options_of(model, tmp_path / "unfolded", fold=False, **asked))


def test_every_place_of_a_layer_is_looked_at(tiny: Callable[..., Path]) -> None:
    source = Source(tiny(torch_dtype="bfloat16"))
    layer, forward = Layer.of(source.layer(0), source.model), LayerForward(source.model, 8, torch.float32, CPU)
    forward.load(0, source.layer(0))
    seen = calibrate_layer(forward, torch.randn(2, 8, 64), HALF_RANGE, 0, 2)
    named = {what for _, what in half_range.places(layer, seen)}
    family = source.model.family
    for name in [*(norm.name for norm in family.norms), *(group.name for group in family.groups), *layer.weights]:
        assert any(name in what for what in named), name
    half_range.check(layer, seen)
    seen.stream_amax["post_layernorm"] = 7e4
    with pytest.raises(InputError, match="the hidden state before post_layernorm reaches 7e\\+04"):
        half_range.check(layer, seen)


def test_rotation_turns_two_channels_into_one() -> None:
    amax = torch.tensor([3.0, 1.0, 4.0, 0.0])
    model = read_model(TINY | {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 4})
    assert torch.equal(half_range.rotated(amax, model), torch.tensor([[5.0, 1.0]]))
    neighbours = replace(model, family=replace(model.family, positions=INTERLEAVED))
    assert torch.equal(half_range.rotated(amax[[0, 2, 1, 3]], neighbours), torch.tensor([[5.0, 1.0]]))
    assert torch.equal(half_range.rotated(amax[[0, 2, 1, 3]], replace(model, rotary_dim=2)), torch.tensor([[5.0]]))


def test_smoothing_and_rotation_alone_can_leave_the_range(tiny: Callable[..., Path]) -> None:
    source = Source(tiny(torch_dtype="bfloat16"))
    layer, forward = Layer.of(source.layer(0), source.model), LayerForward(source.model, 8, torch.float32, CPU)
    forward.load(0, source.layer(0))
    seen = calibrate_layer(forward, torch.randn(2, 8, 64), HALF_RANGE, 0, 2)
    query = source.model.family.attention[0]
    seen.output_amax[query] = torch.full_like(seen.output_amax[query], 6e4)
    with pytest.raises(InputError, match=r"the output of .*, rotated, reaches"):
        half_range.check(layer, seen)
    seen.output_amax[query] = torch.zeros_like(seen.output_amax[query])
    layer.factors["mlp.proj"] = layer.smoothers["mlp.proj"] = torch.full((96,), 1e-6)
    with pytest.raises(InputError, match=r"an input of mlp\.proj, smoothed, reaches"):
        half_range.check(layer, seen)


def test_a_divergence_that_is_no_number_fails() -> None:
    passing = Accuracy(tokens=9, perplexity=2.0, reference_perplexity=2.0, kl=0.0, top1=1.0)
    assert accuracy_failures(passing, 0.0) == []
    assert accuracy_failures(replace(passing, kl=math.nan), None) == ["the divergence from the source is no number"]
