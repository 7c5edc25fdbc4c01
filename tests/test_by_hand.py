"""One layer through the quantizer and its target, beside the same composed by hand: every tensor, to the bit.

What calibration should see is counted by a float layer that is written out in full (``by_hand``), and what it does see
is held to that; quantizer and composition then both start from the numbers counted there.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.models.forward import LayerForward
from enginesmith.convert.models.layer import Layer as ScaledLayer
from enginesmith.convert.numbers import awq, gptq, qserve, rounding
from enginesmith.convert.numbers.quantized import QuantizedLinear
from enginesmith.convert.numbers.rounding import Grid
from enginesmith.convert.quantize.options import QuantizeOptions
from enginesmith.convert.quantize.precision import Precision
from enginesmith.convert.quantize.quantization import Quantization
from enginesmith.convert.quantize.quantizer import Quantizer, of_scaled_queries
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.statistics.calibrate import calibrate_layer
from enginesmith.convert.statistics.layer import LayerStatistics
from enginesmith.convert.statistics.wanted import EVERYTHING
from enginesmith.convert.targets.trtllm.formats import scheme_of

from .by_hand import (
    GROUPS,
    HALVES,
    HUGGING_FACE,
    LINEARS,
    NORMS,
    Layer,
    Tensors,
    assert_same,
    balanced,
    channel_amax,
    common,
    fused,
    grams,
    group_of,
    known,
    quantized,
    statistics_of,
    stored,
)
from .conftest import TINY

# What calibration sees.


@pytest.mark.parametrize("batch", [3, 8])
def test_statistics_are_those_of_a_layer_written_out(batch: int, layer: Layer) -> None:
    model = Source(layer.folder).model
    forward = LayerForward(model, 24, torch.float32, torch.device("cpu"))
    forward.load(0, layer.source)
    seen, expected = calibrate_layer(forward, layer.hidden.clone(), EVERYTHING, 0, batch), statistics_of(layer)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    assert seen.inputs.keys() == expected.inputs.keys()
    for group, inputs in expected.inputs.items():
        for name in ("amax", "tokens", "weight", "gram", "magnitude"):
            close(getattr(seen.inputs[group], name), getattr(inputs, name))
    assert seen.output_amax.keys() == expected.output_amax.keys()
    for part, amax in expected.output_amax.items():
        close(seen.output_amax[part], amax)
    assert seen.stream_amax == pytest.approx(expected.stream_amax, rel=1e-4)
    for name in ("key_amax", "value_amax", "query_amax"):
        close(getattr(seen, name), getattr(expected, name))


# One scale a row, or a matrix.


@HALVES
@pytest.mark.parametrize("rounds", ["nearest", "gptq"])
@pytest.mark.parametrize("bits", [4, 8])
def test_weight_only(bits: int, rounds: str, dtype: str, layer: Layer) -> None:
    kept, half = getattr(torch, dtype), 2 ** (bits - 1)
    expected = common(layer.b, layer.n, kept)
    for linear in LINEARS:
        weight = fused(layer.w, linear)
        scale = (weight.abs().amax(1) / half).to(kept)
        integers = rounding.weight_only(weight, bits).values
        if rounds == "gptq":
            grid = Grid(scale.float()[:, None], None, -half, half - 1)
            integers = gptq.gptq(weight, grams(layer)[group_of(linear)], grid, act_order=True).values
        expected |= {f"{linear}.weight": integers, f"{linear}.per_channel_scale": scale}
    assert_same(stored(layer, f"W{bits}A16", dtype=dtype, rounding=rounds), expected)


def test_fp8_with_a_scale_that_all_readers_of_an_input_share(layer: Layer) -> None:
    expected = common(layer.b, layer.n, torch.float16)
    for linear in LINEARS:
        group = group_of(linear)
        scale = torch.stack([layer.w[letter].abs().max() for letter in GROUPS[group]]).max()[None] / 448
        expected |= {
            f"{linear}.weight": (fused(layer.w, linear) / scale).to(torch.float8_e4m3fn),
            f"{linear}.weights_scaling_factor": scale,
            f"{linear}.activation_scaling_factor": layer.reads[group].abs().max()[None] / 448,
        }
    assert_same(stored(layer, "FP8"), expected)
    assert torch.equal(expected["mlp.fc.weights_scaling_factor"], expected["mlp.gate.weights_scaling_factor"])
    assert layer.w["g"].abs().max() != layer.w["u"].abs().max()


def test_fp8_with_a_scale_a_row(layer: Layer) -> None:
    expected = common(layer.b, layer.n, torch.float16)
    for linear in LINEARS:
        weight = fused(layer.w, linear)
        scale = weight.abs().amax(1) / 448
        expected[f"{linear}.weight"] = (weight / scale[:, None]).to(torch.float8_e4m3fn)
        expected[f"{linear}.per_channel_scale"] = scale
    assert_same(stored(layer, "FP8_PER_CHANNEL_PER_TOKEN"), expected)


def test_qserve_by_groups(layer: Layer) -> None:
    expected = common(layer.b, layer.n, torch.float16)
    for linear in LINEARS:
        made = qserve.per_group(fused(layer.w, linear))
        expected |= {f"{linear}.weight": made.values, f"{linear}.s1_scales": known(made.second)}
        expected |= {f"{linear}.s2_scales": made.scale, f"{linear}.s2_zeros": -known(made.zero) * made.scale}
    assert_same(stored(layer, "W4A8_QSERVE_PER_GROUP"), expected)


def test_qserve_by_channels(layer: Layer) -> None:
    expected = common(layer.b, layer.n, torch.float16)
    for linear in LINEARS:
        made = qserve.per_channel(fused(layer.w, linear))
        expected |= {f"{linear}.weight": made.values, f"{linear}.s1_scales": made.scale}
        expected[f"{linear}.s1_szeros"] = (known(made.zero).float() * made.scale.float()).half()
    assert_same(stored(layer, "W4A8_QSERVE_PER_CHANNEL"), expected)


# Groups of a row: AWQ and GPTQ.


@HALVES
@pytest.mark.parametrize("rounds", ["auto", "nearest"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq(bits: int, symmetric: bool, rounds: str, dtype: str, layer: Layer) -> None:
    kept = getattr(torch, dtype)
    expected = common(layer.b, layer.n, kept)
    for linear in LINEARS:
        weight, gram = fused(layer.w, linear), grams(layer)[group_of(linear)]
        grid = awq.clip(weight, gram, Grid.of(weight, 64, bits, symmetric)).stored(kept)
        made = gptq.gptq(weight, gram, grid, act_order=True) if rounds == "auto" else grid.round(weight)
        zero = torch.zeros_like(made.scale) if made.zero is None else -made.zero.float() * made.scale
        expected |= {
            f"{linear}.weight": made.values,
            f"{linear}.weights_scaling_factor": made.scale.t().to(kept),
            f"{linear}.zero": zero.t().to(kept),
        }
    options = {"group_size": 64, "symmetric": symmetric, "rounding": rounds}
    assert_same(stored(layer, f"W{bits}A16_GPTQ", dtype=dtype, **options), expected)


def scaled_by_awq(layer: Layer, size: int, fold: bool) -> tuple[Tensors, Tensors, Tensors, Tensors, Tensors]:
    """Weights, biases and norms behind AWQ's scaling, s of each group, and what is left to divide its input by."""
    w, b, n = layer.copies()
    grid, s, left = partial(Grid.of, group_size=size, bits=4, symmetric=True), {}, {}
    for group, inputs in statistics_of(layer).inputs.items():
        weights = [layer.w[letter] for letter in GROUPS[group]]
        s[group] = awq.search(weights, inputs.gram_matrix(), grid, size, inputs.magnitude).factor
        w |= {letter: w[letter] * s[group] for letter in GROUPS[group]}
        left[group] = s[group]
        if group in NORMS:
            n[NORMS[group]] = n[NORMS[group]] / s[group]
            left[group] = torch.ones_like(s[group])
    for group, feeder in (("attention.dense", "v"), ("mlp.proj", "u")):
        if fold and not (feeder == "v" and layer.shares_values):
            w[feeder], b[feeder] = w[feeder] / s[group][:, None], b[feeder] / s[group]
            left[group] = torch.ones_like(s[group])
    return w, b, n, s, left


def rounded_by_awq(
    layer: Layer, w: Tensors, s: Tensors, linear: str, size: int, dtype: torch.dtype, gptqs: bool = False
) -> QuantizedLinear:
    weight, factor = fused(w, linear), s[group_of(linear)]
    gram = grams(layer)[group_of(linear)] / factor[:, None] / factor
    grid = awq.clip(weight, gram, Grid.of(weight, size, 4, True)).stored(dtype)
    return gptq.gptq(weight, gram, grid, act_order=True) if gptqs else grid.round(weight)


@HALVES
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("rounds", ["auto", "gptq"])
def test_awq(rounds: str, fold: bool, dtype: str, layer: Layer) -> None:
    kept = getattr(torch, dtype)
    w, b, n, s, left = scaled_by_awq(layer, 64, fold)
    expected = common(b, n, kept)
    for linear in LINEARS:
        made = rounded_by_awq(layer, w, s, linear, 64, kept, rounds == "gptq")
        expected |= {
            f"{linear}.weight": made.values,
            f"{linear}.weights_scaling_factor": made.scale.t().to(kept),
            f"{linear}.prequant_scaling_factor": (1 / left[group_of(linear)])[None].to(kept),
        }
    assert_same(stored(layer, "W4A16_AWQ", dtype=dtype, fold=fold, group_size=64, rounding=rounds), expected)


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("fold", [True, False])
def test_awq_with_fp8_activations(fold: bool, quiet: bool, layer: Layer) -> None:
    if quiet:  # an input so small that the loader's quotient, not its range, bounds its scale
        layer = replace(layer, reads=layer.reads | {"attention.dense": layer.reads["attention.dense"] * 1e-6})
    w, b, n, s, left = scaled_by_awq(layer, 128, fold)
    expected = common(b, n, torch.float16)
    for linear in LINEARS:
        group, made = group_of(linear), rounded_by_awq(layer, w, s, linear, 128, torch.float16)
        prescale = 1 / left[group]
        # The loader divides the one by the other, in float16.
        activation = torch.maximum(
            (channel_amax(layer.reads[group]) / s[group]).max() / 448, 1.01 * prescale.max() / 65504
        )
        second = (made.values.float().unflatten(1, (-1, 128)) * made.scale[..., None]).abs().max() / 448
        expected |= {
            f"{linear}.weight": made.values,
            f"{linear}.weights_scaling_factor": made.scale.t().half(),
            f"{linear}.prequant_scaling_factor": prescale[None].half(),
            f"{linear}.activation_scaling_factor": activation[None],
            f"{linear}.weights_scaling_factor_2": second[None],
        }
    assert_same(stored(layer, "W4A8_AWQ", fold=fold, group_size=128), expected)


@pytest.mark.parametrize("algorithm", ["W4A16_AWQ", "W4A16_GPTQ", "W4A8_AWQ"])
def test_the_error_that_is_told_is_that_of_outputs(algorithm: str, layer: Layer) -> None:
    _, made = quantized(layer, algorithm, fold=False, group_size=128)
    for group in GROUPS:
        s, x = made.layer.factors.get(group, torch.ones(1)), layer.reads[group].flatten(0, 1)
        errors = []
        for linear in [linear for linear in LINEARS if group_of(linear) == group]:
            weight = torch.cat([made.layer.weights[HUGGING_FACE[letter]] for letter in LINEARS[linear]])
            wanted, got = x @ fused(layer.w, linear).t(), (x / s) @ weight.t()
            errors.append(float((got - wanted).square().sum() / wanted.square().sum()))
        # Of more than 256 rows a sample counts.
        rel = 1e-3 if layer.shares_values or group != "attention.qkv" else 0.2
        assert made.chosen[group]["error"] == pytest.approx(max(errors), rel=rel)
        assert (made.chosen[group]["alpha"] is not None) == ("AWQ" in algorithm)


# What a layer is believed to compute.


@pytest.mark.parametrize("algorithm", ["W4A16_AWQ", "W8A16_GPTQ"])
def test_a_computed_layer_divides_by_what_the_runtime_divides_by(algorithm: str, layer: Layer) -> None:
    target, made = quantized(layer, algorithm, fold=False, group_size=64)
    tensors, computed = target.layer(0, made), made.layer.computed()
    for linear, letters in LINEARS.items():
        scale, integers = tensors[f"{linear}.weights_scaling_factor"].float(), tensors[f"{linear}.weight"].float()
        weight = integers.unflatten(1, (-1, 64)) * scale.t()[..., None]
        if algorithm == "W8A16_GPTQ":
            weight = weight + tensors[f"{linear}.zero"].float().t()[..., None]
        weight = weight.flatten(1).half().float()
        prescale = tensors.get(f"{linear}.prequant_scaling_factor", torch.ones(1)).float()
        rows = torch.cat([computed[f"{HUGGING_FACE[letter]}.weight"] for letter in letters])
        torch.testing.assert_close(rows, weight * prescale, rtol=1e-6, atol=0)
        assert torch.equal(
            torch.cat([computed[f"{HUGGING_FACE[x]}.bias"] for x in letters]), tensors[f"{linear}.bias"].float()
        )
    assert torch.equal(computed["input_layernorm.weight"], tensors["input_layernorm.weight"].float())
    assert torch.equal(computed["post_attention_layernorm.weight"], tensors["post_layernorm.weight"].float())


@pytest.mark.parametrize("folded", [True, False])
def test_a_scaled_layer_computes_what_it_did(folded: bool, layer: Layer) -> None:
    model = Source(layer.folder).model
    scaled, draw = ScaledLayer.of(layer.source, model), torch.Generator().manual_seed(0)
    s = {group: torch.rand(x.shape[-1], generator=draw) + 0.5 for group, x in layer.reads.items()}
    for group in model.family.groups:
        scaled.scale_input(group, s[group.name], s[group.name] if folded and group.name == "mlp.proj" else None)
    computed, w = scaled.computed(), layer.w
    assert torch.equal(computed["input_layernorm.weight"], layer.n["input_layernorm"] / s["attention.qkv"])
    assert torch.equal(computed["self_attn.q_proj.weight"], w["q"] * s["attention.qkv"])
    assert torch.equal(computed["self_attn.o_proj.weight"], w["o"] * s["attention.dense"] / s["attention.dense"])
    up, down, own = w["u"] * s["mlp.fc+gate"], w["d"] * s["mlp.proj"], s["mlp.proj"]
    assert torch.equal(computed["mlp.up_proj.weight"], up / own[:, None] if folded else up)
    assert torch.equal(computed["mlp.up_proj.bias"], layer.b["u"] / own if folded else layer.b["u"])
    assert torch.equal(computed["mlp.down_proj.weight"], down if folded else down / own)


# The scale that keys and values share.


@pytest.mark.parametrize("fold", [True, False])
def test_an_int8_cache_covers_rotated_keys(fold: bool, layer: Layer) -> None:
    key = layer.keys.abs().max()
    assert key > 1.005 * layer.makes["k"].abs().max()  # rotated ones reach further
    assert key > 3 * layer.makes["v"].abs().max()
    moved = balanced(layer) if fold else layer
    largest = torch.maximum(key, moved.makes["v"].abs().max())
    expected = common(moved.b, moved.n, torch.bfloat16) | {"attention.kv_cache_scaling_factor": largest[None] / 127}
    expected |= {f"{linear}.weight": fused(moved.w, linear).bfloat16() for linear in LINEARS}
    assert_same(stored(layer, "none", dtype="bfloat16", kv_cache="INT8", fold=fold), expected)


def test_an_int8_cache_covers_values_that_reach_further(layer: Layer) -> None:
    layer = replace(layer, makes=layer.makes | {"v": layer.makes["v"] * 100})
    scale = stored(layer, "FP8", kv_cache="INT8", fold=False)["attention.kv_cache_scaling_factor"]
    assert torch.equal(scale, layer.makes["v"].abs().max()[None] / 127)


@pytest.mark.parametrize("times", [{}, {"k": 1000}, {"v": 1000}, {"q": 1000}], ids=str)
def test_an_fp8_cache_has_the_least_power_of_two_that_fits(times: dict[str, int], layer: Layer) -> None:
    made = {letter: layer.makes[letter] * times.get(letter, 1) for letter in "qv"}
    layer = replace(layer, makes=layer.makes | made, keys=layer.keys * times.get("k", 1))
    # Queries are known before they are rotated.
    reach = [float(layer.keys.abs().max()), float(made["v"].abs().max()), float(made["q"].abs().max()) * 2**0.5]
    expected = next(2.0**power for power in range(20) if 2.0**power * 448 >= max(reach))
    assert (expected == 1) == (not times)
    assert stored(layer, "FP8", kv_cache="FP8")["attention.kv_cache_scaling_factor"].tolist() == [expected]


@pytest.mark.parametrize("family", [{}, {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}], ids=str)
def test_yarn_scales_queries_twice(family: dict[str, Any]) -> None:
    """Once for cos and sin of the query, once for those of the key; where queries have a norm, behind it."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    model, times = read_model(TINY | family | {"rope_scaling": yarn}), (0.1 * math.log(4) + 1) ** 2
    outputs = {f"self_attn.{letter}_proj": torch.tensor([3.0]) for letter in "qk"}
    seen = LayerStatistics({}, outputs, query_amax=torch.tensor([2.0]), key_amax=torch.tensor([5.0]))
    how = Quantization(Precision(model, scheme_of(None)), QuantizeOptions(), "float16")
    quantizer, without = Quantizer(how), Quantizer(replace(how, turned_tables=False))
    assert quantizer.of_queries == pytest.approx(times)
    assert without.of_queries == 1  # the runtime's own tables have it
    assert of_scaled_queries(seen, model, without.of_queries) is seen
    scaled = of_scaled_queries(seen, model, quantizer.of_queries)
    assert known(scaled.query_amax).item() == pytest.approx(2 * times)
    assert known(scaled.key_amax).item() == 5
    assert scaled.output_amax["self_attn.q_proj"].item() == pytest.approx(3 if family else 3 * times)
    assert scaled.output_amax["self_attn.k_proj"].item() == 3
