"""--float_budget: what is measured of a part, which parts a budget is spent on, and the checkpoint that comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.job.compare import compare
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.prove.sensitivity import Sensitivity, parts_of
from enginesmith.convert.prove.verify import structure_problems
from enginesmith.convert.quantize.budget import Part, Spent
from enginesmith.convert.quantize.precision import mixed
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.targets.trtllm.checkpoint import Checkpoint
from enginesmith.convert.targets.trtllm.formats import scheme_of
from tests.command import run

Tiny = Callable[..., Path]
Converted = Callable[..., Checkpoint]
STATIC, PLUGIN = "W8A8_SQ_PER_CHANNEL", "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN"
# Of the tiny model: down_proj is 5.3 % of a layer's weights, 1.4 to 5.7 % of all.
WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}


@pytest.fixture
def massive(tiny: Tiny) -> Path:
    """A model of which one channel before down_proj of layer 1 is wide on both sides, as massive activations are."""
    folder = tiny(**WIDE)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][7] *= 200
    weights["model.layers.1.mlp.down_proj.weight"][:, 7] *= 40
    save_file(weights, folder / "model.safetensors")
    return folder


def spent_on(checkpoint: Checkpoint) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint.folder / "enginesmith.json").read_text())["float_budget"]
    return found


def test_a_budget_goes_where_a_weight_costs_most() -> None:
    parts = [
        Part(0, ("a",), 100, 3.0),
        Part(0, ("b",), 10, 1.0),
        Part(1, ("a",), 100, 8.0),
        Part(1, ("b",), 10, 0.1),
        Part(2, ("a",), 780, 0.0),
    ]
    wide, small, large, little, exact = parts[1], parts[3], parts[2], parts[0], parts[4]
    assert Spent.on(parts, 11).in_float == [wide, large]
    assert Spent.on(parts, 10.9).in_float == [wide, small]  # what does not fit is passed over
    assert Spent.on(parts, 21).in_float == [wide, large, little]
    everything = Spent.on(parts, 100)
    assert everything.in_float == [wide, large, little, small]
    assert everything.quantized == [exact]  # it costs nothing, so nothing is spent on it
    assert Spent.on(list(reversed(parts)), 11) == Spent.on(parts, 11)


def test_a_part_is_judged_token_by_token(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token whose hidden state is a thousand times as long, and as far off, counts as much as another."""
    hidden, moved = torch.ones(1, 2, 64), torch.zeros(1, 2, 64)
    hidden[0, 1] = 1000
    moved[0, 0, 0], moved[0, 1, 0] = 4, 8000
    model = Source(tiny()).model
    sensitivity = object.__new__(Sensitivity)
    sensitivity.target = None  # type: ignore[assignment]
    sensitivity.how = type("How", (), {"model": model, "precision": mixed(model, scheme_of(STATIC))})()
    monkeypatch.setattr(sensitivity, "behind", lambda i, s, t, groups: hidden + moved if groups else hidden)
    weights = Source(tiny()).layer(0, torch.device("cpu"))
    parts = sensitivity.layer(0, weights, None)  # type: ignore[arg-type]
    assert [part.groups for part in parts] == [(group.name,) for group in model.family.groups]
    assert [part.weights for part in parts] == [64 * 128, 64 * 64, 64 * 192, 64 * 96]
    assert {round(part.error, 6) for part in parts} == {round((16 / 64 + 64 / 64) / 2, 6)}
    assert torch.equal(sensitivity.hidden, hidden)


def test_plugins_that_take_a_whole_module_leave_a_whole_module(tiny: Tiny) -> None:
    model = Source(tiny()).model
    names = [group.name for group in model.family.groups]
    assert list(parts_of(mixed(model, scheme_of(PLUGIN)), 0)) == [tuple(names[:2]), tuple(names[2:])]
    left = mixed(model, scheme_of(STATIC), ["*.0.mlp.down_proj"])
    assert list(parts_of(left, 0)) == [(name,) for name in names[:3]]


def test_the_massive_part_is_left_and_the_rest_is_what_exclude_makes(massive: Path, converted: Converted) -> None:
    checkpoint = converted(massive, quant=STATIC, float_budget=9)
    spent = spent_on(checkpoint)
    assert spent["in_float"][0]["linears"] == ["model.layers.1.mlp.down_proj"]
    everything = spent["in_float"] + spent["quantized"]
    assert len(everything) == 12
    assert spent["weights"] == sum(part["weights"] for part in everything)
    assert sum(part["weights"] for part in spent["in_float"]) <= 0.09 * spent["weights"]
    names = [name for part in spent["in_float"] for name in part["linears"]]
    same = converted(massive, quant=STATIC, exclude=names)
    again = converted(massive, quant=STATIC, float_budget=9)
    for name in ("rank0.safetensors", "config.json"):
        wanted = (checkpoint.folder / name).read_bytes()
        assert wanted == (same.folder / name).read_bytes()
        assert wanted == (again.folder / name).read_bytes()
    assert structure_problems(checkpoint) == []
    assert spent_on(same) is None
    assert not list(checkpoint.folder.parent.glob(".*.partial"))


def test_saved_statistics_choose_the_same(massive: Path, converted: Converted, tmp_path: Path) -> None:
    converted(massive, save_stats=str(tmp_path / "stats"))
    ways = [
        converted(massive, quant=STATIC, float_budget=9, **more) for more in ({}, {"stats": str(tmp_path / "stats")})
    ]
    ranks = [(checkpoint.folder / "rank0.safetensors").read_bytes() for checkpoint in ways]
    assert ranks[0] == ranks[1]
    assert spent_on(ways[0]) == spent_on(ways[1])


@pytest.mark.parametrize(
    ("options", "exceptions"),
    [
        ({"quant": PLUGIN, "kv_cache": "INT8"}, 4),
        ({"quant": "W8A8_SQ_PER_TENSOR_PLUGIN"}, 4),
        ({"quant": "W8A16"}, 1),
        ({"quant": "W4A16_GPTQ", "group_size": 64}, 1),
        ({"quant": "FP8", "tp_size": 2}, 1),
        ({"quant": "W4A16_AWQ", "group_size": 64, "exclude": ("*.0.mlp",)}, 1),
    ],
    ids=lambda value: value["quant"] if isinstance(value, dict) else "",
)
def test_every_scheme_with_exceptions(
    options: dict[str, Any], exceptions: int, massive: Path, converted: Converted
) -> None:
    checkpoint = converted(massive, float_budget=35, **options)
    assert structure_problems(checkpoint) == []
    spent = spent_on(checkpoint)
    assert len([name for part in spent["in_float"] for name in part["linears"]]) >= exceptions
    asked = (*options.get("exclude", ()), *(name for part in spent["in_float"] for name in part["linears"]))
    wanted = mixed(checkpoint.model, scheme_of(options["quant"], 64), asked, kv_cache=options.get("kv_cache"))
    for index in range(3):
        assert checkpoint.precision.layer(index) == wanted.layer(index)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "nothing is quantized; give --quant"),
        ({"quant": STATIC, "save_stats": "stats"}, "save the statistics without it, then give --stats"),
        ({"quant": STATIC, "pp_size": 2}, "use --pp_size 1, or --exclude"),
        ({"quant": "W4A8_QSERVE_PER_GROUP"}, "quantizes every layer, TensorRT-LLM knows no exceptions from it"),
    ],
)
def test_where_nothing_can_be_chosen(options: dict[str, Any], reason: str, tiny: Tiny, converted: Converted) -> None:
    with pytest.raises(InputError, match=f"^--float_budget: .*{reason}"):
        converted(tiny(hidden_size=128, intermediate_size=256), float_budget=3, **options)


@pytest.mark.parametrize("percent", [0, -1, 51, float("nan")])
def test_percents_that_are_none(percent: float) -> None:
    with pytest.raises(InputError, match=r"--float_budget is .* a finite number above 0, at most 50"):
        ConvertOptions("model", "out", quant=STATIC, float_budget=percent)


def test_a_comparison_spends_none(tiny: Tiny) -> None:
    with pytest.raises(InputError, match="--float_budget: a comparison"):
        compare(ConvertOptions(str(tiny()), quant=STATIC, float_budget=3), [STATIC])


def test_the_command_says_what_is_in_floating_point(massive: Path, tmp_path: Path) -> None:
    words = ("convert", "--model_dir", massive, "--quant", STATIC, "--calib", tmp_path / "ids.safetensors")
    words += ("--calib_seq_len", 24, "--output_dir", tmp_path / "out", "--float-budget", 9)
    assert "% of the weights: model.layers.1.mlp.down_proj" in run(*words).stderr


@pytest.mark.parametrize("target", ["edge", "compressed-tensors", "trtllm"])
def test_every_target_spends_it_on_its_own_arithmetic(target: str, massive: Path, tmp_path: Path) -> None:
    """The wide linear stays in floating point whoever executes it, under its name, and the folder says so."""
    ids = massive.parent / "ids.safetensors"
    save_file({"input_ids": torch.randint(0, 100, (8, 24), generator=torch.Generator().manual_seed(3))}, ids)
    words = ("--target", target, "--calib", ids, "--calib_size", 8, "--calib_seq_len", 24, "--float_budget", 9)
    told = run("convert", "--model_dir", massive, "--output_dir", tmp_path / "out", "--quant", STATIC, *words).stderr
    name = "model.layers.1.mlp.down_proj"
    assert name in told
    spent = json.loads((tmp_path / "out" / "enginesmith.json").read_text())["float_budget"]
    assert spent["in_float"][0]["linears"] == [name]
    held = {key for file in (tmp_path / "out").glob("*.safetensors") for key in load_file(file)}
    scales = {
        "trtllm": "transformer.layers.1.mlp.proj.weights_scaling_factor",
        "edge": f"{name}.weight_scale",
        "compressed-tensors": f"{name}.weight_scale",
    }
    assert scales[target] not in held
    assert scales[target].replace(".1.", ".0.") in held
    run("verify", tmp_path / "out", "--reference", massive, "--text", ids, "--seq_len", 24, "--chunks", 2)
