"""A process killed before any one of its steps in the file system: the same command then runs through, to the same
bytes, and nothing half-made has a final name meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from enginesmith.cli.main import main
from tests.build_folders import write_checkpoint
from tests.triton_folders import write_engine, write_tokenizer

Tiny = Callable[..., Path]
Words = list[object]
# Calls that change what lies under which name.
CHANGES = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync")


def typed(words: Words, killed_at: int | None = None, by: int = signal.SIGKILL) -> int:
    """The exit code of a command in a process of its own, ended before its n-th change in the file system."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (this process only ends)
        sys.argv = ["enginesmith", *map(str, words)]
        os.fsync = lambda descriptor: None  # no power is lost here
        if killed_at is not None:
            kill_at(killed_at, by)
        main()
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 99)
    finally:
        os._exit(98)


def kill_at(number: int, by: int) -> None:
    left = iter(range(number))

    def ending(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **settings: Any) -> Any:
            if next(left, None) is None:
                os.kill(os.getpid(), by)
            return change(*args, **settings)

        return call

    for name in CHANGES:
        setattr(os, name, ending(getattr(os, name)))


def content(folder: Path) -> dict[str, bytes]:
    """Every file that has its final name."""
    seen = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    files = [path for one in seen for path in [one, *sorted(one.rglob("*"))] if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def kills(words: Words, made: Path, every: int = 1, by: int = signal.SIGKILL) -> Iterator[int]:
    """Kill the command before each of its changes in turn, and look at what is left and at what it makes then.

    Yields after each, for what has to be cleared besides ``made``.
    """
    assert typed(words) == 0
    whole = content(made.parent)
    number = 0
    while True:
        shutil.rmtree(made)
        yield number
        code = typed(words, killed_at=number, by=by)
        if code == 0:
            break
        assert code == (-signal.SIGKILL if by == signal.SIGKILL else 130), number
        again = typed(words)
        assert again == 0 or (again == 2 and number > 5 and content(made.parent) == whole), number
        assert content(made.parent) == whole, number
        left = [path.name for path in made.parent.iterdir() if path.name.startswith(".")]
        assert again == 2 or not left, (number, left)
        for path in made.parent.glob(".*.partial"):
            shutil.rmtree(path)
        number += every
    assert number > 8


def test_convert(tiny: Tiny, tmp_path: Path) -> None:
    model, out = tiny(num_hidden_layers=1), tmp_path / "made" / "out"
    for _ in kills(["convert", "--model_dir", model, "--output_dir", out, "--tp_size", 2], out):
        pass


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_convert_that_saves_statistics(by: int, tiny: Tiny, tmp_path: Path) -> None:
    model, made = tiny(num_hidden_layers=1), tmp_path / "made"
    words: Words = ["convert", "--model_dir", model, "--output_dir", made / "out", "--save_stats", made / "st"]
    words += ["--quant", "W8A8_SQ_PER_CHANNEL", "--calib", tmp_path / "ids.safetensors", "--calib_seq_len", 24]
    made.mkdir()
    for _ in kills(words, made / "out", every=2, by=by):
        (made / "st").unlink()


def test_a_plan(tmp_path: Path) -> None:
    out = tmp_path / "made" / "out"
    words: Words = ["build", "--checkpoint_dir", write_checkpoint(tmp_path / "ck"), "--output_dir", out]
    for _ in kills([*words, "--plan_only", "--gpu", "A100"], out, every=2):
        pass


def test_a_repository(tmp_path: Path) -> None:
    engine, tokenizer = write_engine(tmp_path / "engine"), write_tokenizer(tmp_path / "tokenizer")
    out = tmp_path / "made" / "out"
    words: Words = ["triton", "--engine_dir", engine, "--tokenizer_dir", tokenizer, "--output_dir", out]
    for _ in kills(words, out, every=3):
        pass


@pytest.mark.parametrize(("changed", "every"), [(False, 3), (True, 7)])
def test_a_run(changed: bool, every: int, tiny: Tiny, tmp_path: Path) -> None:
    """Also one that begins with removing what an earlier recipe made."""
    tiny(num_hidden_layers=1)
    out, path = tmp_path / "made" / "release", tmp_path / "recipe.yaml"
    recipe: dict[str, Any] = {"model_dir": "hf", "output_dir": "made/release", "convert": {"tp_size": 2}}
    recipe["verify"] = {"text": "ids.safetensors", "seq_len": 24, "chunks": 1}
    recipe["build"] = {"gpu": "A100", "max_input_len": 8}
    path.write_text(yaml.safe_dump(recipe))
    for _ in kills(["run", path], out, every):
        if changed:
            path.write_text(yaml.safe_dump(recipe | {"convert": {"tp_size": 1}}))
            assert typed(["run", path]) == 0
            path.write_text(yaml.safe_dump(recipe))
