"""A source, or a result, that changes while it is read or written becomes no checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginesmith.convert.errors import InputError
from enginesmith.convert.files.disk import write_json
from enginesmith.convert.job import making
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.sources.folder import Source

from .conftest import write_model
from .source_folders import WHOLE


def at_layer(index: int, act: Callable[[], None]) -> Callable[[int, str, int], None]:
    """Something that happens once, when a layer begins to be read."""
    left = [act]

    def on_progress(layer: int, phase: str, tokens: int) -> None:
        if layer == index and phase == "read" and left:
            left.pop()()

    return on_progress


def another_model(path: Path) -> None:
    """In place: the same size, other numbers."""
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(os.urandom(100))


def rename_over(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def moved_away(path: Path) -> None:
    """Its inode keeps a name, elsewhere, and a copy takes its place."""
    content = path.read_bytes()
    path.rename(path.parent.parent / "moved")
    path.write_bytes(content)


CHANGES = {
    "written to": another_model,
    "renamed over": rename_over,
    "cut": cut,
    "removed": Path.unlink,
    "moved away": moved_away,
}


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "moved")


@pytest.mark.parametrize("name", [WHOLE, "config.json"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_becomes_no_checkpoint(change: str, name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf")
    options = ConvertOptions(str(folder), str(tmp_path / "out"))
    with pytest.raises(InputError, match=rf"{name}: (was|changed) .*while it was read; start again"):
        convert(options, at_layer(2, lambda: CHANGES[change](folder / name)))
    assert left_in(tmp_path) == ["hf", "ids.safetensors"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_at_the_very_end_becomes_no_checkpoint(change: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf")

    def on_progress(layer: int, phase: str, tokens: int) -> None:
        if phase == "hash":
            CHANGES[change](folder / "config.json")

    with pytest.raises(InputError, match=r"config\.json: .*while it was read; start again"):
        convert(ConvertOptions(str(folder), str(tmp_path / "out")), on_progress)
    assert left_in(tmp_path) == ["hf", "ids.safetensors"]


@pytest.mark.parametrize("name", [WHOLE, "config.json"])
def test_a_source_that_changes_leaves_no_statistics(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf")
    calibration = {"calib": str(tmp_path / "ids.safetensors"), "calib_size": 8, "calib_seq_len": 24}
    options = ConvertOptions(str(folder), str(tmp_path / "out"), save_stats=str(tmp_path / "st"), **calibration)
    with pytest.raises(InputError, match="while it was read"):
        convert(options, at_layer(3, lambda: rename_over(folder / name)))
    assert left_in(tmp_path) == ["hf", "ids.safetensors"]


@pytest.mark.parametrize(
    ("phase", "change"),
    # What another writes into a file that is itself being written shows in no time stamp.
    [("hash", change) for change in CHANGES] + [("read", change) for change in CHANGES if change != "written to"],
)
def test_a_result_that_changes_is_no_checkpoint(phase: str, change: str, tmp_path: Path) -> None:
    folder, seen = write_model(tmp_path / "hf"), list[tuple[int, str]]()

    def on_progress(layer: int, now: str, tokens: int) -> None:
        if now == phase and (phase == "hash" or not layer):
            CHANGES[change](tmp_path / ".out.partial" / "out" / "rank0.safetensors")
        seen.append((layer, now))

    with pytest.raises(InputError, match=r"--output_dir: rank0\.safetensors: .* while it was \w+; start again"):
        convert(ConvertOptions(str(folder), str(tmp_path / "out")), on_progress)
    assert left_in(tmp_path) == ["hf", "ids.safetensors"]
    # What shows while it is written is not written to the end.
    assert ((1, "read") in seen) == (phase == "hash" or change == "moved away")


@pytest.mark.parametrize("change", CHANGES)
def test_a_result_that_changes_after_it_was_hashed_is_no_checkpoint(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, value: dict[str, Any]) -> None:
        write_json(path, value)
        if path.name == "enginesmith.json":
            CHANGES[change](path.with_name("rank0.safetensors"))

    monkeypatch.setattr(making, "write_json", write)
    folder = write_model(tmp_path / "hf")
    with pytest.raises(InputError, match=r"--output_dir: rank0\.safetensors: .* while it was read; start again"):
        convert(ConvertOptions(str(folder), str(tmp_path / "out")))
    assert left_in(tmp_path) == ["hf", "ids.safetensors"]


def test_a_file_that_nobody_wrote_is_no_result(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf")
    with pytest.raises(InputError, match=r"rank7\.safetensors: was put there by someone else"):
        convert(
            ConvertOptions(str(folder), str(tmp_path / "out")),
            at_layer(1, lambda: (tmp_path / ".out.partial" / "out" / "rank7.safetensors").touch()),
        )
    assert not (tmp_path / "out").exists()


def test_each_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, opened, true_open = write_model(tmp_path / "hf"), list[str](), os.open

    def counting(path: Any, *args: Any, **named: Any) -> int:
        opened.append(os.fspath(path))
        return true_open(path, *args, **named)

    monkeypatch.setattr(os, "open", counting)
    source = Source(folder)
    for index in range(4):
        source.layer(index)
    assert [Path(path).name for path in opened if str(folder) in path] == ["config.json", WHOLE]
