"""One scale for keys and values: measured for FP8 as for INT8, and values made to reach as far as keys, exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.convert.models.layer import Layer
from enginesmith.convert.numbers.inputs import InputStatistics
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import measure
from enginesmith.convert.quantize.layer import kv_cache
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.statistics.layer import LayerStatistics

from .command import run
from .conftest import write_model

Convert = Callable[..., Checkpoint]
SCALE = "attention.kv_cache_scaling_factor"


def biased(folder: Path, **biases: float) -> Path:
    """A model whose layer 1 has biases of this size on the first channel of q, k or v."""
    model = write_model(folder, torch_dtype="bfloat16", attention_bias=True, intermediate_size=128)
    weights = load_file(model / "model.safetensors")
    for name in [name for name in weights if name.endswith(".bias")]:
        weights[name] = torch.zeros_like(weights[name])
    for part, size in biases.items():
        weights[f"model.layers.1.self_attn.{part}_proj.bias"][0] = size
    save_file(weights, model / "model.safetensors")
    return model


def kl(checkpoint: Checkpoint, model: Path) -> float:
    return measure(checkpoint, model, str(model.parent / "ids.safetensors"), 8, 24).kl


@pytest.mark.parametrize("quant", [None, "W8A16", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"])
@pytest.mark.parametrize("part", ["k", "v"])
def test_an_fp8_cache_takes_what_reaches_beyond_its_range(
    part: str, quant: str | None, tmp_path: Path, converted: Convert
) -> None:
    model = biased(tmp_path / "hf", **{part: 900.0})
    cached = converted(model, quant=quant, kv_cache="FP8")
    scales = [float(cached.layer(index)[SCALE]) for index in range(4)]
    assert [scales[0], *scales[2:]] == [1.0] * 3
    assert scales[1] in (2.0, 4.0)
    if part == "k" or quant != "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN":
        assert scales[1] * 448 >= 900
    measured, path = kl(cached, model), cached.rank_file(0)
    tensors = load_file(path)
    tensors[f"transformer.layers.1.{SCALE}"].fill_(1.0)
    save_file(tensors, path)
    saturated = kl(Checkpoint(cached.folder), model)
    assert measured < 0.7 * saturated


def test_queries_count_where_prompts_are_attended_to_in_fp8(tmp_path: Path, converted: Convert) -> None:
    assert float(converted(biased(tmp_path / "hf", q=900.0), kv_cache="FP8").layer(1)[SCALE]) == 4.0


def test_the_scale_of_an_fp8_cache_is_said(tmp_path: Path) -> None:
    model = biased(tmp_path / "hf", k=900.0)
    words = ("--calib", model.parent / "ids.safetensors", "--calib_size", 8, "--calib_seq_len", 24)
    shown = run("convert", "--model_dir", model, "--output_dir", tmp_path / "out", "--kv_cache", "FP8", *words)
    assert "FP8 KV cache: its scale is 4 in layer 1" in " ".join(shown.stderr.split())


@pytest.mark.parametrize(
    ("largest", "scale"),
    [(448.0, 1.0), (448.1, 2.0), (900.0, 4.0), (1.0, 1.0), (0.25, 1.0), (0.2, 2.0**-11), (0.0, 1.0), (1e-35, 1.0)],
)
def test_scales_of_fp8_are_powers_of_two_that_fit(largest: float, scale: float) -> None:
    assert kv_cache.fp8_scale(largest) == scale
    assert math.frexp(scale)[0] == 0.5
    assert largest / scale <= 448


def test_the_scale_of_an_int8_cache_covers_keys_and_values_alone() -> None:
    seen = LayerStatistics({}, key_amax=torch.tensor([3.0, 5.0]), value_amax=torch.tensor([8.0, 1.0]))
    assert float(kv_cache.cache_scale("INT8", seen)) == pytest.approx(8 / 127)
    assert float(kv_cache.cache_scale("INT8", seen, torch.tensor([4.0, 1.0]))) == pytest.approx(5 / 127)


def layer_of(model: Path) -> Layer:
    source = Source(model)
    return Layer.of(source.layer(1), source.model)


def seen_of(layer: Layer, key: float, value: float) -> LayerStatistics:
    size = layer.model.kv_size
    inputs = {
        "attention.dense": InputStatistics(
            torch.rand(2, 64), torch.randn(6, 64), torch.ones(6), torch.rand(64, 64), torch.rand(64)
        )
    }
    return LayerStatistics(
        inputs, {"self_attn.v_proj": torch.rand(size)}, {}, torch.full((size,), key), torch.full((size,), value)
    )


def test_values_reach_as_far_as_keys_and_float_computes_the_same(tmp_path: Path) -> None:
    before, layer = layer_of(biased(tmp_path / "hf", v=3.0)), layer_of(tmp_path / "hf")
    dense = next(group for group in layer.model.family.groups if group.name == "attention.dense")
    seen = seen_of(layer, 70.0, 1.0)
    moved = kv_cache.balance(layer, dense, seen, [], torch.bfloat16)
    assert moved.value_amax is not None
    assert float(moved.value_amax.max()) == 64.0
    value, out = "self_attn.v_proj", "self_attn.o_proj"
    assert torch.equal(layer.weights[value], before.weights[value] * 64)
    assert torch.equal(layer.biases[value], before.biases[value] * 64)
    assert torch.equal(layer.weights[out], before.weights[out] / 64)
    assert torch.equal(layer.biases[out], before.biases[out])
    old, new = seen.inputs["attention.dense"], moved.inputs["attention.dense"]
    assert torch.equal(new.amax, old.amax * 64)
    assert torch.equal(new.tokens, old.tokens * 64)
    assert torch.equal(new.gram_matrix(), old.gram_matrix() * 4096)
    assert new.magnitude is not None
    assert old.magnitude is not None
    assert torch.equal(new.magnitude, old.magnitude * 64)
    assert torch.equal(moved.output_amax[value], seen.output_amax[value] * 64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_that_stay_floats_move_only_where_their_digits_are_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    layer = layer_of(biased(tmp_path / "hf"))
    layer.weights["self_attn.o_proj"][0, 0] = 1e-6  # a subnormal of float16
    dense = next(group for group in layer.model.family.groups if group.name == "attention.dense")
    seen = seen_of(layer, 70.0, 1.0)
    moved = kv_cache.balance(layer, dense, seen, list(layer.weights), dtype)
    assert (moved is seen) == (dtype == torch.float16)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quant": "W8A16"},
        {"quant": "W8A16", "rounding": "gptq"},
        {"quant": "W4A16_AWQ", "group_size": 64},
        {"quant": "W8A16_GPTQ", "group_size": 64},
        {"quant": "FP8"},
        {"quant": "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "none",
)
def test_an_int8_cache_loses_less_with_balanced_values(
    options: dict[str, Any], tmp_path: Path, converted: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouped heads, where a smoother per channel cannot go into v_proj, but one number can."""
    model = biased(tmp_path / "hf", k=300.0)
    balanced = converted(model, kv_cache="INT8", **options)
    plain = kl(converted(model, **options), model)
    monkeypatch.setattr(kv_cache, "value_over_key", lambda statistics: 1.0)
    kept = converted(model, kv_cache="INT8", **options)
    assert kl(balanced, model) - plain < 0.7 * (kl(kept, model) - plain)


@pytest.mark.parametrize("quant", ["W8A16", "W4A16", "FP8_PER_CHANNEL_PER_TOKEN", "W8A16_GPTQ"])
def test_integers_stay_what_they_were(quant: str, tmp_path: Path, converted: Convert) -> None:
    model = biased(tmp_path / "hf", k=300.0)
    options = {"quant": quant, "kv_cache": "INT8", "group_size": 64, "propagate": "float"}
    one, other = converted(model, **options).layer(1), converted(model, fold=False, **options).layer(1)
    for name in ("attention.qkv.weight", "attention.dense.weight", "mlp.fc.weight"):
        assert torch.equal(one[name].view(torch.int8), other[name].view(torch.int8)), name
