"""SmoothQuant on one layer, beside the same composed by hand (as ``test_by_hand``): every tensor, to the bit."""

from __future__ import annotations

import pytest
import torch

from enginesmith.convert.numbers import gptq, smoothing
from enginesmith.convert.numbers.rounding import Grid

from .by_hand import (
    GROUPS,
    HALVES,
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
    statistics_of,
    stored,
)


def smoothed(
    layer: Layer, by_channel: bool, static: bool, cached: bool = False
) -> tuple[Tensors, Tensors, Tensors, dict[str, smoothing.Smoothing], Tensors, torch.Tensor | float]:
    """Weights, biases and norms behind SmoothQuant, each group's choice, the smoothers of inputs that no norm makes,
    and what values were divided by."""
    w, b, n = layer.copies()
    chosen, left = dict[str, smoothing.Smoothing](), Tensors()
    values: torch.Tensor | float = 1.0
    for group, letters in GROUPS.items():
        # Rows of up_proj, which down_proj's smoother may undo, and those of q, k and v have scales of their own.
        own = [by_channel or letter in "qkvu" for letter in letters]
        blocks = [smoothing.Block.of(layer.w[letter], rows) for letter, rows in zip(letters, own, strict=True)]
        chosen[group] = smoothing.choose(statistics_of(layer).inputs[group], blocks, None, "auto" if static else None)
    for group, letters in GROUPS.items():
        s = left[group] = chosen[group].factor
        w |= {letter: w[letter] * s for letter in letters}
        if group in NORMS:
            n[NORMS[group]] = n[NORMS[group]] / s
            del left[group]
        elif group == "mlp.proj" or not layer.shares_values:
            feeder = "u" if group == "mlp.proj" else "v"
            divided = w["u"].abs().amax(1) if feeder == "u" and not by_channel else s
            divided = divided / divided.log().mean().exp()
            if feeder == "v" and cached:  # values reach as far as keys
                value, key = channel_amax(layer.makes["v"]) / divided, layer.keys.abs().max()
                divided = divided * (float(value.max()) / float(key))
            w[feeder], b[feeder], left[group] = w[feeder] / divided[:, None], b[feeder] / divided, s / divided
            values = divided if feeder == "v" else values
    return w, b, n, chosen, left, values


def rows_by_smoothquant(w: Tensors, linear: str, by_channel: bool) -> torch.Tensor:
    """The largest weight of each row, or of the matrix where its rows share a scale."""
    amax = fused(w, linear).abs().amax(1)
    return amax if by_channel or linear == "attention.qkv" else amax.max().expand_as(amax)


PLUGINS = {
    "W8A8_SQ_PER_TENSOR_PLUGIN": (False, True),
    "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN": (True, True),
    "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN": (False, False),
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN": (True, False),
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("rounds", ["nearest", "gptq"])
@pytest.mark.parametrize("algorithm", PLUGINS)
def test_smoothquant(algorithm: str, rounds: str, cached: bool, layer: Layer) -> None:
    by_channel, static = PLUGINS[algorithm]
    given = layer
    if cached and layer.shares_values:
        layer = balanced(layer)
    w, b, n, chosen, left, values = smoothed(layer, by_channel, static, cached)
    expected = common(b, n, torch.float16)
    for linear, letters in LINEARS.items():
        group, weight, amax = group_of(linear), fused(w, linear), rows_by_smoothquant(w, linear, by_channel)
        expected[f"{linear}.weight"] = int8_of(layer, weight, amax, group, chosen[group].factor, rounds)
        scale = amax / 127 if by_channel or linear == "attention.qkv" else amax[:1] / 127
        if static:
            output = max(float(layer.makes[letter].abs().max()) for letter in letters)
            scale = scale * (known(chosen[group].range) / output)
            expected[f"{linear}.act_scale"] = torch.tensor([[output / 127]])
        expected[f"{linear}.per_channel_scale"] = scale[None]
        if group in left:
            expected[f"{linear}.smoother"] = left[group][None]
    for group, norm in NORMS.items():
        expected[f"{norm}.scale_to_int"] = torch.tensor([127 / known(chosen[group].range) if static else 1.0])
    for module, group in (("attention", "attention.dense"), ("mlp", "mlp.proj")) if static else ():
        expected[f"{module}.quantization_scaling_factor"] = torch.tensor([127 / known(chosen[group].range)])
    if cached:
        largest = max(float(layer.keys.abs().max()), float((channel_amax(layer.makes["v"]) / values).max()))
        expected["attention.kv_cache_scaling_factor"] = torch.tensor([largest]) / 127
    got = stored(given, algorithm, rounding=rounds, kv_cache="INT8" if cached else None)
    assert_same(got, expected)


def int8_of(
    layer: Layer, weight: torch.Tensor, amax: torch.Tensor, group: str, s: torch.Tensor, rounds: str
) -> torch.Tensor:
    if rounds == "nearest":
        return (weight * (127 / amax)[:, None]).round().to(torch.int8)
    gram = grams(layer)[group] / s[:, None] / s
    return gptq.gptq(weight, gram, Grid(amax[:, None] / 127, None, -127, 127), act_order=True).values


@pytest.mark.parametrize("rounds", ["nearest", "gptq"])
@HALVES
def test_smoothquant_in_tensorrts_own_layers(dtype: str, rounds: str, layer: Layer) -> None:
    kept = getattr(torch, dtype)
    w, b, n, chosen, left, _ = smoothed(layer, True, True)
    expected = common(b, n, kept)
    for linear in LINEARS:
        group, weight = group_of(linear), fused(w, linear)
        amax = weight.abs().amax(1)
        prescale = 1 / left[group] if group in left else torch.ones(weight.shape[1])
        expected |= {
            f"{linear}.weight": int8_of(layer, weight, amax, group, chosen[group].factor, rounds),
            f"{linear}.weights_scaling_factor": amax / 127,
            f"{linear}.activation_scaling_factor": torch.tensor([known(chosen[group].range) / 127]),
            f"{linear}.prequant_scaling_factor": prescale.to(kept),
        }
    assert_same(stored(layer, "W8A8_SQ_PER_CHANNEL", dtype=dtype, rounding=rounds), expected)
