"""What a command reads is never written to or removed, whatever it is called and wherever it lies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from enginesmith.convert.errors import InputError
from enginesmith.convert.files.apart import check_apart
from tests.build_folders import write_checkpoint
from tests.command import run
from tests.triton_folders import write_engine, write_tokenizer

Tiny = Callable[..., Path]


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refused(words: list[object], folder: Path, reason: str) -> None:
    """The command is refused, and leaves the folder as it was."""
    before = everything(folder)
    assert reason in run(*words, expect=2).stderr
    assert everything(folder) == before


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder to read with a file in it, one elsewhere that links to it, and one beside."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("w")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "model" / "shard").symlink_to(tmp_path / "elsewhere" / "blob")
    (tmp_path / "elsewhere" / "blob").write_text("b")
    return tmp_path


@pytest.mark.parametrize(
    "write",
    ["model", "model/out", "model/a/b", "link/out", "elsewhere/../model/out", ".", "elsewhere/blob", "elsewhere"],
)
def test_places_that_touch(write: str, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(places)
    for read in ("model", "link", str(places / "model")):
        with pytest.raises(InputError, match=r"--output_dir: .*choose another place"):
            check_apart({"--model_dir": read}, {"--output_dir": write})


def test_places_that_do_not(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(places)
    for write in ("out", "model2", "elsewhere/out", "modelx/out", "no/where", "link2"):
        check_apart({"--model_dir": "model", "--calib": None}, {"--output_dir": write, "--save_stats": None})


def test_the_hidden_folder_counts(tmp_path: Path) -> None:
    """It is emptied before anything is made in it."""
    inside = tmp_path / ".out.partial" / "model"
    inside.mkdir(parents=True)
    with pytest.raises(InputError, match="written over --model_dir"):
        check_apart({"--model_dir": inside}, {"--output_dir": tmp_path / "out"})


def test_links_in_a_circle_and_odd_names(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for odd in (tmp_path / "loop", tmp_path / "loop" / "out", tmp_path / ("x" * 300), Path("a\0b")):
        with pytest.raises(InputError, match="--output_dir: "):
            check_apart({"--model_dir": tmp_path}, {"--output_dir": odd})
        with pytest.raises(InputError, match="--model_dir: "):
            check_apart({"--model_dir": odd}, {"--output_dir": tmp_path / "out"})


def test_two_outputs_in_each_other(tmp_path: Path) -> None:
    for one, other in (("out", "out"), ("out", "out/st")):
        with pytest.raises(InputError, match=r" lies in what --\w+ makes"):
            check_apart({}, {"--output_dir": tmp_path / one, "--save_stats": tmp_path / other})


def test_what_leads_to_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link, or a folder before "..", that is removed takes its input along; so does a data set's folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("model", "out/sub", "set", "moved"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "model" / "weights").write_text("w")
    (tmp_path / "out" / "link").symlink_to(tmp_path / "model")
    (tmp_path / "away").symlink_to("out/link")
    (tmp_path / "moved" / "weights").symlink_to(tmp_path / "out" / "link" / "weights")
    (tmp_path / "out" / "sub" / "a.jsonl").write_text("{}")
    (tmp_path / "set" / "data").symlink_to(tmp_path / "out" / "sub")
    for read in ("out/link", "away", "moved", "out/link/weights", "out/sub/../../model", "set"):
        with pytest.raises(InputError, match=r"--output_dir: .*choose another place"):
            check_apart({"--model_dir": read}, {"--output_dir": "out"})
    check_apart({"--model_dir": "model"}, {"--output_dir": "out"})
    os.link(tmp_path / "model" / "weights", tmp_path / "report")
    with pytest.raises(InputError, match="--html: report lies in --model_dir"):
        check_apart({"--model_dir": "model"}, {"--html": "report"})


def test_convert_and_compare(tiny: Tiny, tmp_path: Path) -> None:
    model, ids = tiny(), tmp_path / "ids.safetensors"
    words: list[object] = ["--model_dir", model, "--quant", "FP8", "--calib", ids, "--calib_seq_len", 24]
    refused(["convert", *words, "--output_dir", model / "out"], tmp_path, "--output_dir: ")
    refused(["convert", *words, "--output_dir", tmp_path / "o", "--save_stats", model / "st"], tmp_path, "--save_stats")
    page = tmp_path / "text.html"
    page.write_text("a text to measure on")
    (tmp_path / "loop").symlink_to("loop")
    for html in (model / "page.html", page):
        refused(["compare", *words, "--text", page, "--seq_len", 24, "--html", html], tmp_path, "--html: ")
    refused(["convert", *words, "--output_dir", tmp_path / "loop" / "o"], tmp_path, "--output_dir: ")


def test_build(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "ck")
    words: list[object] = ["build", "--checkpoint_dir", checkpoint, "--gpu", "A100"]
    refused([*words, "--plan_only", "--output_dir", checkpoint / "plan"], tmp_path, "lies in --checkpoint_dir")
    cache = ["--output_timing_cache", checkpoint / "cache", "--output_dir", tmp_path / "engine"]
    refused([*words, *cache], tmp_path, "--output_timing_cache: ")


def test_triton(tmp_path: Path) -> None:
    engine, tokenizer = write_engine(tmp_path / "engine"), write_tokenizer(tmp_path / "tokenizer")
    words: list[object] = ["triton", "--engine_dir", engine, "--tokenizer_dir", tokenizer, "--output_dir"]
    refused([*words, engine / "repository"], tmp_path, "lies in --engine_dir")
    refused([*words, tokenizer / "repository"], tmp_path, "lies in --tokenizer_dir")


@pytest.mark.parametrize(
    "step", ["checkpoint", "plan", "engine", "repository", ".steps", ".plan.removed", "engine/model"]
)
@pytest.mark.parametrize("what", ["model_dir", "calib", "text", "tokenizer_dir", "recipe", "link"])
def test_run(step: str, what: str, tiny: Tiny, tmp_path: Path) -> None:
    """A folder of an earlier run, in which the recipe finds what it reads."""
    model, ids = tiny(vocab_size=400), tmp_path / "ids.safetensors"
    write_tokenizer(model)
    place = tmp_path / "release" / step
    (tmp_path / "release" / ".steps").mkdir(parents=True)
    (tmp_path / "release" / ".steps" / ".made-by-enginesmith").touch()
    place.mkdir(parents=True, exist_ok=True)
    recipe: dict[str, Any] = {"model_dir": str(model), "output_dir": str(tmp_path / "release")}
    recipe |= {"convert": {"calib": str(ids)}, "verify": {"text": str(ids)}, "build": {"gpu": "A100"}}
    recipe |= {"triton": {"tokenizer_dir": str(model)}}
    path = tmp_path / "recipe.yaml"
    if what == "model_dir":
        recipe["model_dir"] = str(model.rename(place / "hf"))
    elif what == "calib":
        recipe["convert"]["calib"] = str(ids.rename(place / "ids.safetensors"))
    elif what == "text":
        (place / "ids.safetensors").write_bytes(ids.read_bytes())
        recipe["verify"]["text"] = str(place / "ids.safetensors")
    elif what == "tokenizer_dir":
        recipe["triton"]["tokenizer_dir"] = str(write_tokenizer(place / "tokenizer"))
    elif what == "recipe":
        path = place / "recipe.yaml"
    else:  # a model's folder whose weights lie elsewhere, as in a hub's cache
        (model / "model.safetensors").rename(place / "blob")
        (model / "model.safetensors").symlink_to(place / "blob")
    path.write_text(yaml.safe_dump(recipe))
    refused(["run", path], tmp_path, "output_dir, ")


def test_run_and_its_timing_cache(tiny: Tiny, tmp_path: Path) -> None:
    recipe = {"model_dir": str(tiny()), "output_dir": "release"}
    path = tmp_path / "recipe.yaml"
    for name in ("verify.json", "checkpoint/cache"):
        build = {"gpu": "A100", "output_timing_cache": str(tmp_path / "release" / name)}
        path.write_text(yaml.safe_dump(recipe | {"build": build}))
        refused(["run", path], tmp_path, "choose another place")


def test_run_leaves_what_its_mark_links_to(tiny: Tiny, tmp_path: Path) -> None:
    state, config = tmp_path / "release" / ".steps", tiny() / "config.json"
    state.mkdir(parents=True)
    (state / ".made-by-enginesmith").symlink_to(config)
    before = config.stat().st_mtime_ns
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model_dir": "hf", "output_dir": "release"}))
    run("run", path)
    assert config.stat().st_mtime_ns == before


def test_run_in_the_model(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny()
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model_dir": "hf", "output_dir": "hf/out"}))
    refused(["run", path], tmp_path, "lies in --model_dir")
    refused(["run", path, "--output_dir", model], tmp_path, "lies in --model_dir")
    os.symlink("loop", tmp_path / "loop")
    refused(["run", path, "--output_dir", tmp_path / "loop"], tmp_path, "output_dir")
    refused(["run", path, "--model_dir", tmp_path / "loop"], tmp_path, "--model_dir: ")
