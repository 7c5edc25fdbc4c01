"""SmoothQuant against checkpoints that TensorRT-LLM 0.16's own converter wrote.

The goldens keep float16 where the weights are float16; float32 arithmetic may differ from them by one step in
at most 2.5 % of a tensor's integers, 2e-3 relative in scales and one float16 step in norm weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from enginesmith.convert.models.layer import Layer
from enginesmith.convert.models.pieces import LEARNED
from enginesmith.convert.models.shapes import seen
from enginesmith.convert.numbers.inputs import InputStatistics
from enginesmith.convert.quantize.layer import quantize_layer
from enginesmith.convert.quantize.options import QuantizeOptions as Options
from enginesmith.convert.quantize.precision import Precision
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.statistics.layer import LayerStatistics
from enginesmith.convert.targets.trtllm.config import checkpoint_config
from enginesmith.convert.targets.trtllm.formats import scheme_of
from enginesmith.convert.targets.trtllm.formats.base import Engine
from enginesmith.convert.targets.trtllm.ranks import Mapping, cut
from enginesmith.convert.targets.trtllm.target import TensorRTLLM

from .conftest import DATA, GOLDEN
from .test_golden_families import within


def cases() -> list[Any]:
    found = []
    families = [DATA / "golden_families" / name for name in ("qwen2", "gpt2", "bloom")]
    for folder in (GOLDEN / "gqa", GOLDEN / "mha", *families):
        for case in json.loads((folder / "index.json").read_text())["cases"]:
            if (folder / case["name"]).is_dir() and case["quant_algo"] != "W8A16":
                found.append(pytest.param(folder, case, id=f"{folder.name}-{case['name']}"))
    return found


def golden_statistics(ranges: dict[str, torch.Tensor], source: Source, layer: int) -> LayerStatistics:
    """The library's own calibration result in the form that quantize_layer reads."""
    family = source.model.family
    prefix = family.layer.format(i=layer)
    inputs = {}
    for group in family.groups:
        amax = ranges[f"{prefix}{family.view(family.linear(group.linears[0]).parts[0]).tensor}.x"]
        inputs[group.name] = InputStatistics(amax[None], torch.zeros(0, amax.shape[0]), torch.zeros(0))
    outputs = {}
    for linear in family.linears:
        for part in linear.parts:
            view = family.view(part)
            made = ranges[f"{prefix}{view.tensor}.y"]
            outputs[part] = seen(made, view, source.model.out_features(linear.name), source.model)
    # The library counts the queries in, and keys before the rotary embedding.
    everything = torch.cat([outputs[part] for part in family.attention])
    key = everything.max().expand(source.model.kv_size)
    nothing = torch.zeros(source.model.kv_size)
    return LayerStatistics(inputs, outputs, key_amax=key, value_amax=nothing, query_amax=nothing)


def assert_close(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape, name
    if theirs.dtype == torch.int8:
        difference = (ours.int() - theirs.int()).abs()
        assert difference.max() <= 1, name
        assert (difference > 0).float().mean() <= 0.025, name
    else:
        tolerance = 1e-3 if theirs.dtype == torch.float16 else 2e-3
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=tolerance, atol=0, msg=name)


@pytest.mark.parametrize(("folder", "case"), cases())
def test_equals_upstream(folder: Path, case: dict[str, Any]) -> None:
    source = Source(folder / "hf")
    model, mapping = source.model, Mapping(case["tp"], case["pp"])
    cache = case["kv_cache_quant_algo"]
    target = TensorRTLLM(Precision(model, scheme_of(case["quant_algo"]), kv_cache=cache), Engine("float16"))
    schemes = target.precision.layer(0)
    ranges = load_file(folder / "act_range.safetensors")
    specs = target.tensors(0)
    options = Options(alpha=case["alpha"], act_range="absmax", fold=False)
    ranks = [load_file(folder / case["name"] / f"rank{rank}.safetensors") for rank in range(mapping.world_size)]
    compared = 0
    # The library's GPT converter smooths what norms make, and nothing else.
    unsmoothed = ("attention.dense", "mlp.proj") if model.family.positions == LEARNED else ()
    for stage, layers in enumerate(mapping.stages(model.num_hidden_layers)):
        for local, layer in enumerate(layers):
            statistics = golden_statistics(ranges, source, layer)
            whole = Layer.of(source.layer(layer), model)
            quantized = quantize_layer(whole, statistics, schemes, options, torch.float16, target.computed, cache)
            tensors = target.named(schemes, quantized)
            for tp_rank in range(mapping.tp_size):
                theirs = ranks[stage * mapping.tp_size + tp_rank]
                for name in [name for name in tensors if not name.startswith(unsmoothed)]:
                    tensor = tensors[name]
                    piece = cut(tensor, specs[name], model, mapping, tp_rank)
                    assert_close(name, piece, theirs[f"transformer.layers.{local}.{name}"])
                    compared += 1
    assert compared >= len([name for name in specs if not name.startswith(unsmoothed)])


@pytest.mark.parametrize(("folder", "case"), cases())
def test_config_equals_upstream(folder: Path, case: dict[str, Any]) -> None:
    model = Source(folder / "hf").model
    precision = Precision(model, scheme_of(case["quant_algo"]), kv_cache=case["kv_cache_quant_algo"])
    ours = checkpoint_config(precision, Mapping(case["tp"], case["pp"]), "float16", case["alpha"] or 0.5)
    theirs = json.loads((folder / case["name"] / "config.json").read_text())
    assert within(ours, theirs)
    assert set(ours) == set(theirs) or "moe_tp_size" not in theirs["mapping"]  # which a script wrote, not the class
