"""Saved statistics: the same bytes without a forward pass, and refusals of what does not belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.statistics.file import KEY
from enginesmith.convert.statistics.stream import Calibration

Tiny = Callable[..., Path]
Converted = Callable[..., Checkpoint]
WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
SCHEMES = [
    ("W8A8_SQ_PER_CHANNEL", None),
    ("W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN", "INT8"),
    ("W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", None),
    ("W4A16_AWQ", None),
    ("W4A16_GPTQ", "INT8"),
    ("FP8", None),
    ("W8A16", None),
]


@pytest.fixture
def model(tiny: Tiny) -> Path:
    return tiny(**WIDE)


@pytest.fixture
def saved(model: Path, tmp_path: Path, converted: Converted) -> Path:
    """A file of everything, saved while nothing needed it."""
    converted(model, save_stats=str(tmp_path / "stats.safetensors"))
    return tmp_path / "stats.safetensors"


def test_checkpoints_are_the_same_without_a_forward_pass(
    model: Path, saved: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [{"quant": algo, "kv_cache": cache, "group_size": 64} for algo, cache in SCHEMES]
    once = [converted(model, propagate="float", **each) for each in options]
    monkeypatch.setattr(Calibration, "layer", None)
    for without, each in zip(once, options, strict=True):
        again = converted(model, propagate="float", stats=str(saved), **each)
        for name in ("rank0.safetensors", "config.json", "enginesmith.json"):
            assert (without.folder / name).read_bytes() == (again.folder / name).read_bytes(), (each, name)


def test_what_is_saved_does_not_change_what_is_converted(model: Path, tmp_path: Path, converted: Converted) -> None:
    settings: dict[str, Any] = {"quant": "W8A8_SQ_PER_TENSOR_PLUGIN", "kv_cache": "INT8", "propagate": "float"}
    plain, saving = (converted(model, save_stats=path, **settings) for path in (None, str(tmp_path / "rotated.st")))
    again = converted(model, stats=str(tmp_path / "rotated.st"), **settings)
    ranks = [(checkpoint.folder / "rank0.safetensors").read_bytes() for checkpoint in (plain, saving, again)]
    assert ranks[0] == ranks[1] == ranks[2]


def test_the_header_says_what_it_was_made_of(saved: Path) -> None:
    with safe_open(saved, framework="np") as file:
        made = json.loads(file.metadata()[KEY])
    assert set(made["source"]) == {"config.json", "model.safetensors"}
    assert (made["sequences"], made["tokens_per_sequence"], made["seed"], made["rotated"]) == (8, 24, 0, False)
    assert made["has"] == ["tokens", "gram", "magnitude", "ranges", "outputs", "cache"]
    assert not list(saved.parent.glob(".*.partial"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"calib_size": 4}, r"another calibration text \(.*8 sequences of 24 tokens; not .*4 sequences"),
        ({"calib_seq_len": 12}, "another calibration text"),
        ({"seed": 3}, "made with --seed 0, not 3"),
        ({"quant": "W8A8_SQ_PER_TENSOR_PLUGIN"}, "save one with --rotate --save_stats"),
        ({"propagate": "quantized", "quant": "W4A16_GPTQ"}, "needs a forward pass behind every quantized layer"),
        ({"save_stats": "more.st"}, "give one"),
    ],
)
def test_statistics_of_something_else_are_refused(
    options: dict[str, Any], reason: str, model: Path, saved: Path, converted: Converted
) -> None:
    with pytest.raises(InputError, match=reason):
        converted(model, **{"quant": "W4A16_AWQ", "group_size": 64, "stats": str(saved), **options})


def test_another_model_is_refused(saved: Path, tiny: Tiny, converted: Converted) -> None:
    with pytest.raises(InputError, match=r"another model \(config.json differs\)"):
        converted(tiny(**WIDE, rms_norm_eps=1e-4), quant="FP8", stats=str(saved))
    with pytest.raises(InputError, match="not of this model"):
        converted(tiny(**WIDE | {"num_hidden_layers": 3}), quant="FP8", stats=str(saved))


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    """Change a statistics file's header and tensors."""
    with safe_open(path, framework="np") as file:
        made, tensors = json.loads(file.metadata()[KEY]), load_file(path)
    change(made, tensors)
    save_file(tensors, path, {KEY: json.dumps(made)})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda made, tensors: made.update(version=0), "another version"),
        (lambda made, tensors: made.update(has="gram"), "header is not readable"),
        (lambda made, tensors: made.update(source=[]), "header is not readable"),
        (lambda made, tensors: made.update(extra=1), "header is not readable"),
        (lambda made, tensors: tensors.pop("layers.1.mlp.proj.gram"), "tensor layers.1.mlp.proj.gram differs"),
        (lambda made, tensors: tensors["layers.1.mlp.proj.amax"].fill_(torch.nan), "holds what no calib"),
        (lambda made, tensors: tensors["layers.0.mlp.proj.amax"].neg_(), "proj.amax holds what no calibration gives"),
        (lambda made, tensors: tensors["layers.0.mlp.proj.gram"].neg_(), "proj.gram holds what no calibration gives"),
        (lambda made, tensors: tensors["layers.0.mlp.proj.gram"][0].add_(1), "mlp.proj.gram holds what no calibration"),
        (lambda made, tensors: tensors["layers.0.mlp.proj.gram"].fill_(3e38), "proj.gram holds what no calibration"),
        (lambda made, tensors: made.update(tokens_per_sequence=-5), "header is not readable"),
        (lambda made, tensors: made.update(dtype="x"), "header is not readable"),
        (
            lambda made, tensors: (
                made.update(has=["tokens", "ranges"]),
                [tensors.pop(name) for name in list(tensors) if name.endswith(("gram", "magnitude", "_amax"))
                 and not name.endswith("hidden_amax")],
            ),
            "lacks gram, magnitude, outputs; save it again with --save_stats",
        ),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(
    change: Callable[..., None], reason: str, model: Path, saved: Path, converted: Converted
) -> None:
    rewritten(saved, change)
    with pytest.raises(InputError, match=reason):
        converted(model, quant="W4A16_AWQ", group_size=64, stats=str(saved))


def test_places_that_cannot_be_written_are_refused(model: Path, saved: Path, converted: Converted) -> None:
    for path, reason in ((saved, "exists"), (model / "stats", "lies in"), (model.parent / "no" / "s", "not a folder")):
        with pytest.raises(InputError, match=f"--save_stats: .*{reason}"):
            converted(model, save_stats=str(path))
    with pytest.raises(InputError, match="no statistics"):
        converted(model, stats=str(model / "model.safetensors"))
    for nothing in (model.parent / "nothing", model.parent):
        with pytest.raises(InputError, match=r"--stats: .* is no file; make it with enginesmith convert --save_stats"):
            converted(model, stats=str(nothing))


def test_a_conversion_that_fails_saves_nothing(model: Path, tmp_path: Path) -> None:
    def stop(layer: int, phase: str, tokens: int) -> None:
        if layer == 1:
            raise KeyboardInterrupt

    ids = str(model.parent / "ids.safetensors")
    options = ConvertOptions(
        str(model), str(tmp_path / "out"), calib=ids, calib_seq_len=24, save_stats=str(tmp_path / "s.st")
    )
    with pytest.raises(KeyboardInterrupt):
        convert(options, stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "ids.safetensors"]
