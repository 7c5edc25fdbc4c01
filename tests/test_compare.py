"""enginesmith compare: the numbers of convert and verify without a checkpoint, and the page that shows them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree

import pytest
from safetensors.torch import load_file, save_file

from enginesmith.cli.display import adding_most
from enginesmith.cli.page.report import page
from enginesmith.cli.page.svg import Axis, spaced
from enginesmith.convert.job.compare import Comparison, Conditions, Outliers, Result, Size, compare
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.prove.execution import Accuracy
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import measure
from tests.command import run
from tests.readymade_folders import Folder

Tiny = Callable[..., Path]
Converted = Callable[..., Checkpoint]
WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
# One of each form; W8A8_SQ_PER_TENSOR_PLUGIN rotates the residual stream.
ALGORITHMS = [
    "none",
    "W8A8_SQ_PER_CHANNEL",
    "W8A8_SQ_PER_TENSOR_PLUGIN",
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
    "W8A16",
    "W4A16_AWQ",
    "W4A16_GPTQ",
    "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN",
    "W4A8_QSERVE_PER_GROUP",
]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.fixture
def model(tiny: Tiny) -> Path:
    return tiny(**WIDE)


def compared(model: Path, algorithms: list[str], **options: Any) -> Comparison:
    ids = str(model.parent / "ids.safetensors")
    settings: dict[str, Any] = {"calib": ids, "calib_size": 8, "calib_seq_len": 24, "group_size": 64, **options}
    return compare(ConvertOptions(str(model), "", **settings), algorithms, ids, 4, 24)


@pytest.mark.parametrize(
    ("changes", "options"),
    [({}, {}), ({}, {"kv_cache": "INT8"}), ({"torch_dtype": "float32", "rope_scaling": YARN}, {"dtype": "bfloat16"})],
)
def test_numbers_are_those_of_convert_and_verify(
    changes: dict[str, Any], options: dict[str, Any], tiny: Tiny, converted: Converted
) -> None:
    model = tiny(**WIDE, **changes)
    for result in compared(model, ALGORITHMS, **options).results:
        quant = None if result.name == "none" else result.name
        checkpoint = converted(model, quant=quant, group_size=64, propagate="float", **options)
        assert result.accuracy == measure(checkpoint, model, str(model.parent / "ids.safetensors"), 4, 24), quant
        data = (checkpoint.folder / "rank0.safetensors").read_bytes()
        assert result.size.bytes == len(data) - 8 - int.from_bytes(data[:8], "little")


def test_bits_a_weight_count_scales(model: Path) -> None:
    none, half, awq = (result.size.bits for result in compared(model, ["none", "W8A16", "W4A16_AWQ"]).results)
    assert none == 16
    assert 8 < half < 8.2
    assert 4 + 16 / 64 < awq < 4.5  # a scale a group of 64, and one division an input channel


def test_outliers_are_those_of_the_widest_input(model: Path) -> None:
    names = ["W4A16_GPTQ", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "W8A8_SQ_PER_TENSOR_PLUGIN"]
    found = compared(model, names).outliers
    assert found is not None
    assert found.group in ("attention.qkv", "mlp.fc+gate")
    assert sorted(found.after) == sorted(names[1:])
    assert all(len(after) == len(found.before) == 128 for after in found.after.values())
    for after in found.after.values():
        assert replace(found, before=after).spread < found.spread
    assert compared(model, ["none", "W8A16"]).outliers is None


def words(model: Path, *more: object) -> list[object]:
    ids = model.parent / "ids.safetensors"
    flags = ["--calib", ids, "--calib_size", 8, "--calib_seq_len", 24, "--text", ids, "--chunks", 2, "--seq_len", 24]
    return ["compare", "--model_dir", model, "--group_size", 64, *flags, *more]


def test_the_command(model: Path, tmp_path: Path) -> None:
    asked = words(model, "--quant", "W8A16, W4A16_AWQ", "--kv-cache", "INT8")
    out = run(*asked, "--html", tmp_path / "page.html").stdout
    assert "W8A16" in out
    assert "W4A16_AWQ" in out
    assert "adds most" in out
    shown = json.loads(run(*asked, "--json").stdout)
    assert [each["quant"] for each in shown["algorithms"]] == ["W8A16", "W4A16_AWQ"]
    assert shown["algorithms"][0]["mean_kl"] < shown["algorithms"][1]["mean_kl"]
    assert len(shown["algorithms"][0]["layer_errors"]) == 2
    assert "W4A16_AWQ" in (tmp_path / "page.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "ids.safetensors", "page.html"]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--quant", "W8A16,W3A16"], "--quant is 'W3A16'; did you mean W8A16?"),
        (
            ["--quant", "W4A16_AWQ:gptq"],
            "W4A16_AWQ:gptq: 'gptq' is no setting of an algorithm here; these are: rounding",
        ),
        (["--quant", "W4A16_AWQ:symmetric=no"], "'symmetric=no' is no setting"),
        (["--quant", "W4A16_AWQ:group_size=x"], "'group_size=x' is no setting"),
        (["--quant", "FP8,W4A16_AWQ:group_size=16"], "W4A16_AWQ:group_size=16: --group_size is 16; use one of"),
        (
            ["--quant", "FP8,W4A16_AWQ:group_size=32"],
            "W4A16_AWQ:group_size=32: group_size 32: the kernels of W4A16_AWQ know 64 and 128",
        ),
        (["--quant", "W4A16_AWQ:rounding=best"], "W4A16_AWQ:rounding=best: --rounding is 'best'; use one of: auto"),
        (["--quant", "W8A16:alpha=0.5"], "W8A16:alpha=0.5: --alpha belongs to SmoothQuant"),
        (["--quant", "W8A16,FP8,W8A16"], "W8A16 is named twice"),
        (["--quant", "W8A16,"], "separated by commas"),
        (["--quant", ""], "separated by commas"),
        (["--quant", "W8A16,W4A8_AWQ"], "W4A8_AWQ: group_size 64: the kernels of W4A8_AWQ know 128"),
        (["--quant", "FP8", "--html", "/no/where/page.html"], "--html: /no/where is not a folder"),
        (["--quant", "FP8", "--html", "/"], "--html: / cannot be written"),
        (["--quant", "FP8", "--seq_len", 65], "--seq_len 65 is longer than the model's 64 positions"),
        (["--quant", "FP8", "--calib_seq_len", 65], "--calib_seq_len 65 is longer"),
        (["--quant", "FP8", "--text", "/no/text"], "--text: no such file"),
        (["--quant", "FP8", "--seed", -1], "--seed is -1; a whole number from 0"),
    ],
)
def test_bad_input_is_one_line(flags: list[object], reason: str, model: Path) -> None:
    assert reason in run(*words(model, *flags), expect=2).stderr


def test_settings_of_one_algorithm_are_those_of_convert(model: Path, converted: Converted) -> None:
    settings: dict[str, dict[str, Any]] = {
        "W4A16_AWQ:rounding=gptq": {"quant": "W4A16_AWQ", "rounding": "gptq", "group_size": 64},
        "W4A16_GPTQ:symmetric:group_size=128": {"quant": "W4A16_GPTQ", "symmetric": True, "group_size": 128},
        "W8A8_SQ_PER_CHANNEL:alpha=0.5:act_range=absmax": {
            "quant": "W8A8_SQ_PER_CHANNEL", "alpha": 0.5, "act_range": "absmax"
        },
    }  # fmt: skip
    results = compared(model, list(settings)).results
    assert [result.name for result in results] == list(settings)
    for result in results:
        checkpoint = converted(model, propagate="float", **settings[result.name])
        assert result.accuracy == measure(checkpoint, model, str(model.parent / "ids.safetensors"), 4, 24)


def test_names_may_be_in_any_case(model: Path) -> None:
    shown = json.loads(run(*words(model, "--quant", "w8a16,NONE", "--json")).stdout)
    assert [each["quant"] for each in shown["algorithms"]] == ["W8A16", "none"]


def test_a_folder_that_is_quantized_already_is_refused(tmp_path: Path) -> None:
    Folder(tmp_path / "hf", "gptq")
    refused = run(*words(tmp_path / "hf", "--quant", "W8A16"), expect=2).stderr
    assert "is quantized already (gptq); a comparison needs floating-point weights" in refused
    assert "verify --reference" in refused


def test_a_refusal_names_the_algorithm(tiny: Tiny) -> None:
    model = tiny(**WIDE, torch_dtype="float32")
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"][0, 0] = 1e6
    save_file(weights, model / "model.safetensors")
    refused = run(*words(model, "--quant", "W8A16"), expect=2).stderr
    assert "enginesmith: W8A16: " in refused
    assert "does not fit float16" in refused


def test_pages_take_the_place_of_no_other_file(model: Path, tmp_path: Path) -> None:
    inside = run(*words(model, "--quant", "FP8", "--html", model / "page.html"), expect=2).stderr
    assert f"--html: {model / 'page.html'} lies in --model_dir" in inside
    asked = words(model, "--quant", "FP8", "--html", tmp_path / "notes.txt")
    with mock.patch("os.access", return_value=False):
        assert "notes.txt cannot be written" in run(*asked, expect=2).stderr
    run(*asked)  # a new file may have any name
    assert "notes.txt exists and its name does not end in .html" in run(*asked, expect=2).stderr
    old = tmp_path / "page.html"
    old.write_text("an older page")
    run(*words(model, "--quant", "FP8", "--html", old))
    assert old.read_text().startswith("<!DOCTYPE html>")


def test_the_layers_that_add_most() -> None:
    assert adding_most(accuracy(12.0, [0.1, 0.5, 0.6, 0.55, 0.9])) == [4, 1, 2, 0]
    assert adding_most(accuracy(12.0, [0.1, math.inf, math.nan])) == [1, 0]
    assert adding_most(accuracy(12.0, [0.0, 0.0])) == []


def accuracy(perplexity: float, errors: list[float]) -> Accuracy:
    return Accuracy(10, perplexity, 10.0, 0.1, 0.9, errors)


def test_the_page_is_well_formed_whatever_it_shows() -> None:
    nasty = '<script>alert("&")</script>'
    results = [
        Result(nasty, Size(10**9, 4.25), accuracy(12.0, [0.1, 0.2])),
        Result("W8A16", Size(2 * 10**9, 8.1), accuracy(10.1, [0.0, 0.0])),
        Result("FP8", Size(2 * 10**9, 8.1), accuracy(float("inf"), [0.1, float("nan")])),
    ]
    outliers = Outliers(1, f"mlp{nasty}", [float(i) for i in range(3000)], {nasty: [1.0] * 3000})
    conditions = Conditions("0.1.0", "float16", 64, None, nasty, 32768, "pydoc-heldout")
    for shown in (
        Comparison(nasty, results, outliers, conditions),
        Comparison("m", results[1:], None, replace(conditions, kv_cache="INT8", calibration=None)),
    ):
        text = page(shown)
        root = ElementTree.fromstring(text)
        names = {result.name for result in shown.results}
        assert names <= {"".join(cell.itertext()) for cell in root.iter("{http://www.w3.org/1999/xhtml}td")}
        assert names <= {"".join(item.itertext()).strip() for item in root.iter("{http://www.w3.org/1999/xhtml}li")}
        assert not re.search(r"<script|<link|<img|src=|url\(|@import|href=", text)
        assert "prefers-color-scheme: dark" in text
        assert "overflow-x" not in text  # nothing hides behind a scroll bar
        numbers = [cell for cell in root.iter("{http://www.w3.org/1999/xhtml}td") if cell.get("data-of")]
        assert len(numbers) == 6 * len(shown.results)
        assert "nan" not in "".join(re.findall(r'points="[^"]*"', text))
        assert len(text) < 100_000


def test_the_page_says_how_it_was_made(model: Path) -> None:
    text = page(compared(model, ["W8A16", "W4A16_AWQ"]))
    ids = model.parent / "ids.safetensors"
    version = metadata.version("enginesmith")
    assert f"enginesmith {version}, engine dtype float16, KV cache float16, groups of 64 unless" in text
    assert f"calibrated on 192 tokens ({ids})" in text
    assert f"92 held-out tokens ({ids})" in text
    assert "mean KL (nats)" in text
    assert "It is left as it is by W8A16." in text


@pytest.mark.parametrize("layers", [1, 2, 3, 7, 30])
def test_layers_are_whole_numbers(layers: int) -> None:
    ticks = Axis.over("layer", list(range(layers)), False, whole=True).ticks()
    assert 1 <= len(ticks) <= 6
    assert all(tick == int(tick) and 0 <= tick < layers for tick in ticks)


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [1e-9, 1e9], [2.0, 2.0000001], [float("inf"), 1.0]])
def test_axes_show_any_values(values: list[float], logarithmic: bool) -> None:
    axis = Axis.over("x", values, True, logarithmic)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 12
    slack = 1e-3 * (axis.high - axis.low)
    assert all(axis.low - slack <= tick <= axis.high + slack for tick in ticks)
    assert all(axis.end <= axis.place(value) <= axis.start for value in [*values, *ticks])


def test_names_do_not_overlap() -> None:
    assert spaced([10, 50], 14, 100) == [10, 50]
    assert spaced([10, 11, 12, 90], 14, 100) == [10, 24, 38, 90]
    assert spaced([95, 98, 99], 14, 100) == [72, 86, 100]
    assert spaced([], 14, 100) == []
