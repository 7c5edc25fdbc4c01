"""The hidden folder in which something is made: whose it is, and what is left of it."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from enginesmith.build import build_engine
from enginesmith.convert.errors import InputError
from enginesmith.convert.files.staging import MARK, RESUMABLE, Partial, Staging, partial_of, whole_file


@pytest.fixture
def final(tmp_path: Path) -> Path:
    return tmp_path / "out"


def make(final: Path, text: str = "new", **settings: Any) -> None:
    with Staging(final, **settings) as staging:
        (staging.folder / "file").write_text(text)
        staging.commit()


def leftover(final: Path, mark: bytes | None) -> Path:
    """What a killed run left: a folder with its mark."""
    hidden = partial_of(final)
    (hidden / final.name).mkdir(parents=True)
    (hidden / final.name / "old").write_text("old")
    if mark is not None:
        (hidden / MARK).write_bytes(mark)
    return hidden


@pytest.mark.parametrize("mark", [b"", b"\xff\xfe", b"x" * 10**6, b"committed 1 2 3 4", b"committed"])
def test_what_a_killed_run_left_is_removed(mark: bytes, final: Path) -> None:
    leftover(final, mark)
    make(final)
    assert [path.name for path in final.iterdir()] == ["file"]
    assert os.listdir(final.parent) == ["out"]


def test_what_no_run_left_is_not_touched(final: Path) -> None:
    hidden = leftover(final, None)
    for mark in ("nothing", "folder", "pipe", "link"):
        if mark == "folder":
            (hidden / MARK).mkdir()
        elif mark == "pipe":
            (hidden / MARK).rmdir()
            os.mkfifo(hidden / MARK)
        elif mark == "link":
            (hidden / MARK).unlink()
            (hidden / MARK).symlink_to("nowhere")
        with pytest.raises(InputError, match="which is not ours; remove it"):
            make(final)
        assert (hidden / "out" / "old").read_text() == "old"


def test_a_build_that_can_go_on_is_kept_for_it_alone(final: Path) -> None:
    leftover(final, RESUMABLE.encode())
    with pytest.raises(InputError, match="a build that can go on"):
        make(final)
    with Staging(final, resume=True) as staging:
        assert (staging.folder / "old").exists()
    make(final, resume=True)
    assert {path.name for path in final.iterdir()} == {"old", "file"}


def test_a_build_does_not_go_on_with_what_was_no_build(final: Path) -> None:
    leftover(final, b"")
    make(final, resume=True)
    assert {path.name for path in final.iterdir()} == {"file"}


def test_what_others_put_there_is_never_taken_back(final: Path) -> None:
    """A mark of a killed run that had committed, and then somebody made a folder of that name."""
    make(final, "first")
    found = os.lstat(final)
    final.rename(final.with_name("moved"))
    final.mkdir()
    (final / "mine").write_text("precious")
    leftover(final, f"committed {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}".encode())
    with pytest.raises(InputError, match="exists; remove it"):
        make(final)
    assert (final / "mine").read_text() == "precious"


def test_one_at_a_time(final: Path) -> None:
    with Staging(final) as staging:
        with pytest.raises(InputError, match="being written by another process"):
            make(final)
        staging.commit()
    with pytest.raises(InputError, match="exists"):
        make(final)
    assert os.listdir(final.parent) == ["out"]


def test_one_that_comes_after_another_ended(final: Path) -> None:
    """It looked for the final name before the other one gave it."""
    late = Staging(final)
    make(final)
    with pytest.raises(InputError, match="exists"), late:
        pass
    assert os.listdir(final.parent) == ["out"]


def test_what_appeared_meanwhile_is_not_replaced(final: Path) -> None:
    with Staging(final) as staging:
        final.mkdir()
        with pytest.raises(InputError, match="appeared while it was being made"):
            staging.commit()
    assert os.listdir(final.parent) == ["out"]
    assert not os.listdir(final)


def test_a_disk_without_room_for_the_mark(final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=r"cannot write .*\.out\.partial \(No space left on device\)"):
        make(final)
    assert not os.listdir(final.parent)


def test_another_thread_has_no_signals_to_keep_off(final: Path) -> None:
    with ThreadPoolExecutor() as pool:
        pool.submit(make, final).result()
    assert os.listdir(final.parent) == ["out"]


def test_a_file(final: Path) -> None:
    for text in ("one", "two"):
        with whole_file(final, "--html") as file:
            file.write_text(text)
        assert final.read_text() == text
    with pytest.raises(ZeroDivisionError), whole_file(final, "--html") as file:
        file.write_text(f"{1 / 0}")
    assert final.read_text() == "two"
    assert os.listdir(final.parent) == ["out"]
    with pytest.raises(InputError, match=r"--save_stats: .* exists"):
        Partial(final, "--save_stats")


@pytest.mark.parametrize("name", ["loop/out", "x" * 250, "x" * 300, "a\0b", "file/out"])
def test_places_where_nothing_can_be_made(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output_dir: "):
        make(tmp_path / name)


def test_ranks_that_a_manifest_took_in_are_finished(tmp_path: Path) -> None:
    """A build that is killed while it puts its records together builds nothing again."""
    plan = {"checkpoint": {"tp_size": 2, "pp_size": 1}}
    (tmp_path / "config.json").write_text("{}")
    for rank in range(2):
        (tmp_path / f"rank{rank}.engine").write_bytes(b"engine %d" % rank)
        sums = build_engine.sha256(tmp_path / f"rank{rank}.engine"), build_engine.sha256(tmp_path / "config.json")
        record = {"rank": rank, "seconds": 1.0, "bytes": 8, "sha256": sums[0], "plan": build_engine.digest(plan)}
        build_engine.write_json(
            build_engine.record_file(tmp_path, rank), record | {"machine": {}, "config": sums[1] if rank == 0 else None}
        )
    assert build_engine.write_manifest(plan, tmp_path, 2) == build_engine.BUILT
    manifest = json.loads((tmp_path / "enginesmith.json").read_text())
    assert not build_engine.record_file(tmp_path, 0).exists()
    for rank in range(2):
        assert build_engine.finished(tmp_path, rank, plan)
        assert not build_engine.finished(tmp_path, rank, plan | {"other": 1})
    for ranks in (None, [], [5, 5], {}, "text"):
        (tmp_path / "enginesmith.json").write_text(json.dumps(manifest | {"ranks": ranks}))
        assert build_engine.finished(tmp_path, 0, plan) is None


def test_a_name_behind_a_link_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """link/.. is the folder around what is linked to, for us as for the system."""
    (tmp_path / "far" / "off").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/off")
    monkeypatch.chdir(tmp_path)
    with Staging("link/../out") as staging:
        staging.commit()
    assert (tmp_path / "far" / "out").is_dir()
    assert not (tmp_path / "out").exists()
