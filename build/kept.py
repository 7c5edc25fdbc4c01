"""What a run keeps of its steps: what they were made from, what they made, and that only one run is at work."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..convert.errors import InputError
from ..convert.files.disk import is_there, sha256, text_digest, write_json
from ..convert.files.staging import MARK, remove

STATE = ".steps"


def tokenizer_files(folder: Path) -> list[Path]:
    """What decides how a folder's tokenizer reads text: every small file that is not a weight."""
    kinds = (".json", ".model", ".txt", ".jinja")
    return sorted(path for path in folder.iterdir() if path.suffix in kinds and path.is_file())


def hashes(paths: list[Path]) -> dict[str, str]:
    """SHA-256 by file name."""
    with ThreadPoolExecutor() as pool:
        return dict(zip((path.name for path in paths), pool.map(sha256, paths), strict=True))


def tree(output: Path) -> str:
    """What identifies a file, or a folder with all that lies in it."""
    files = sorted(path for path in output.rglob("*") if path.is_file()) if output.is_dir() else [output]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(sha256, files))
    return text_digest({str(path.relative_to(output)): one for path, one in zip(files, digests, strict=True)})


def write_whole(path: Path, value: dict[str, Any]) -> None:
    """Write JSON that appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    write_json(partial, value)
    partial.replace(path)


def note(inputs: Any, outputs: Any, result: Any) -> dict[str, Any]:
    """What is kept of a step; a note that anyone else changed is none."""
    kept = {"inputs": inputs, "outputs": outputs, "result": result}
    return kept | {"digest": text_digest(kept)}


def discard(output: Path) -> None:
    """Remove what an earlier run made; its name never holds a part of it."""
    if is_there(output):
        output.rename(removed_of(output))
        remove(removed_of(output))


def removed_of(output: Path) -> Path:
    """The name under which something is removed."""
    return output.with_name(f".{output.name}.removed")


def check_free(root: Path) -> None:
    """Raise InputError for a folder that holds what no run made."""
    state = root / STATE
    try:
        entries = [path for path in root.iterdir() if path != state] if is_there(root) else []
        ours = (state / MARK).is_file()
        if not ours and (entries or (is_there(state) and any(state.iterdir()))):
            raise InputError(f"output_dir: {root} holds files and no earlier run; choose an empty folder")
    except OSError as error:
        raise InputError(f"output_dir: {root} cannot be used ({error.strerror})") from None


@contextmanager
def only_one(root: Path, outputs: Sequence[Path]) -> Iterator[None]:
    """Hold the run's folder for this run alone; of its outputs remove what a killed run was about to."""
    state = root / STATE
    try:
        state.mkdir(parents=True, exist_ok=True)
        if not (state / MARK).is_file():
            (state / MARK).touch()
        lock = os.open(state, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"output_dir: {state} cannot be written ({error.strerror})") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise InputError(f"output_dir: another run is at work in {root}") from None
    try:
        for output in outputs:
            remove(removed_of(output))
        yield
    finally:
        os.close(lock)
