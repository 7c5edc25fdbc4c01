"""Folders that nobody should trust, judged: each is a verdict or one clear line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import enginesmith as es

from .command import run
from .reader_folders import gptq, modelopt, plain
from .reader_traps import AWQ4, FP8, INT8, Change, K, Make, Q, V, say, say_beside, weights
from .target_folders import TARGETS


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no such file"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "not readable as JSON"),
    "no object": (lambda folder: (folder / "config.json").write_text("[]"), "holds no JSON object"),
    "nested": (lambda folder: (folder / "config.json").write_text(nested(100_000)), "not readable as JSON"),
    "nested beside": (lambda folder: (folder / "hf_quant_config.json").write_text(nested(100_000)), "not readable"),
    "a number beside": (lambda folder: (folder / "hf_quant_config.json").write_text('{"quantization": 3}'), "object"),
    "not a whole file": (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "not a whole"),
    "a link that leads nowhere": (
        lambda folder: ((folder / "model.safetensors").unlink(), (folder / "model.safetensors").symlink_to("no")),
        "leads nowhere"),
    "a pipe": (
        lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").symlink_to("/dev/zero")),
        "not a regular file"),
    "a shard elsewhere": (
        lambda folder: ((folder / "model.safetensors").unlink(), (folder / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "../other/model.safetensors"}}')), "points outside the folder"),
    "an engine": (lambda folder: (folder / "config.json").write_text('{"pretrained_config": {}}'), "check-engine"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), HOSTILE.values(), ids=HOSTILE)
def test_files_that_cannot_be_read(change: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    folder = plain().write(tmp_path / "model")
    change(folder)
    assert words in run("check", folder, expect=2).stderr


def stating(**values: Any) -> Change:
    return lambda made: made.config.update(values)


STATED: dict[str, tuple[Make, Change, str]] = {
    "a method that is a list": (INT8, say(quant_method=[]), "quant_method must be a text"),
    "groups that are a list": (INT8, say(config_groups=[]), "config_groups must be an object"),
    "bits that are a text": (INT8, lambda made: weights(made).update(num_bits="8"), "num_bits must be an integer"),
    "an algorithm that is a number": (FP8, say_beside(quant_algo=8), "quant_algo must be a text"),
    "a group size of 0": (AWQ4, say_beside(group_size=0), "group_size must be an integer from 1"),
    "bits of 0": (gptq, say(bits=0), "bits must be an integer from 1"),
    "a list that is a text": (INT8, say(ignore="lm_head"), "ignore must be a list of texts"),
    "a pattern without end": (INT8, say(ignore=["re:(a*)*b"]), "too complicated"),
    "a pattern that is none": (INT8, say(ignore=["re:["]), "no regular expression"),
    "patterns without end": (INT8, say(ignore=[f"re:{index}" for index in range(1001)]), "more than 1000 patterns"),
    "names without end": (INT8, say(ignore=["a"] * 100_001), "at most 100000 names"),
    "layers that are not there": (INT8, lambda made: made.config.update(num_hidden_layers=3), "layer 1 has no tensors"),
    "layers without number": (
        plain,
        lambda made: made.config.update(num_hidden_layers=2**31),
        "layer 1 has no tensors",
    ),
    "scales of FP4": (FP8, lambda made: made.put(f"{Q}.weight_scale", "F8_E8M0", element=b"x"), "which cannot be read"),
}


@pytest.mark.parametrize(("make", "change", "words"), STATED.values(), ids=STATED)
def test_statements_that_cannot_be_meant(make: Make, change: Change, words: str, tmp_path: Path) -> None:
    made = make()
    change(made)
    assert words in run("check", made.write(tmp_path / "model"), expect=2).stderr


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = plain().write(tmp_path / "model")
    for shard in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (folder / shard).write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    assert "is also in model-00001-of-00002" in run("check", folder, expect=2).stderr


def test_tensors_without_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginesmith.convert.readers.folder.MOST_TENSORS", 5)
    assert "more than 5 tensors" in run("check", plain().write(tmp_path / "model"), expect=2).stderr


def test_scales_that_are_no_small_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginesmith.convert.readers.values.MOST", 3)
    assert "is larger than scales" in run("check", modelopt("FP8").write(tmp_path / "model"), expect=2).stderr


def test_names_from_files_stay_on_their_line(tmp_path: Path) -> None:
    made = modelopt("FP8")
    made.put("model.\x1b[31m\n" + "x" * 5000 + ".weight_scale", "F32", 3)
    (found,) = es.check(made.write(tmp_path / "model"), ["edge"]).readings
    assert found.verdict == "misreads"
    assert all(line.isprintable() and len(line) <= 400 for line in found.reasons)


def test_sizes_that_no_model_has(tmp_path: Path) -> None:
    made = modelopt("W4A16_AWQ")
    made.put(f"{Q}.weight", "U8", 0, 128)
    made.put(f"{K}.weight_scale", "F32", 64, 0)
    made.put(f"{V}.weight", "U8", 32)
    made.put("weight_scale", "F32", 0)
    assert es.check(made.write(tmp_path / "model")).readings[0].verdict == "misreads"


def test_many_entries_on_many_linears_are_refused_at_once(tmp_path: Path) -> None:
    made = modelopt("FP8")
    for index in range(4000):
        made.put(f"model.layers.{index}.mlp.experts.weight_scale", "F32")
    made.said["ignore"] = [f"name{index}" for index in range(30_000)]
    assert "too many patterns" in run("check", made.write(tmp_path / "model"), expect=2).stderr


def test_a_name_that_begins_with_a_dot(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TARGETS / "modelopt/fp8", tmp_path / "hf"))
    held = load_file(folder / "model.safetensors")
    save_file(held | {".weight_scale": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})
    assert len(es.check(folder).readings) == 5
