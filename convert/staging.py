"""A folder that appears under its final name only when it is complete.

It is made under a hidden name beside its final one and renamed at the end, so the final name never holds half a
result, whatever ends the process.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError

# In the hidden folder while it is being made: says that it is ours to empty.
MARK = ".made-by-enginesmith"
# What the mark says in a folder whose content another run may go on with.
RESUMABLE = "resumable"


class Staging:
    """The folder while it is being made: ``with Staging(final) as staging: ...; staging.commit()``.

    Leaving without commit removes it. What a killed run left behind is removed by the next one. The folder itself
    is the lock that keeps two runs apart: held from before its first file until after its last name.

    Args:
        final: the folder to make.
        resume: keep what an earlier run left behind, and what this one leaves.

    Raises:
        InputError: the final folder exists, its parent cannot be written, another run is making it, or the hidden
            name is taken by something that no run made.
    """

    def __init__(self, final: str | Path, resume: bool = False):
        self.resume = resume
        self.final = Path(os.path.abspath(final))
        self.folder = self.final.parent / f".{self.final.name}.partial"
        if self.exists():
            raise InputError(f"--output_dir: {final} exists; remove it or choose another folder")

    def exists(self) -> bool:
        try:
            return os.path.lexists(self.final)
        except OSError as error:
            raise InputError(f"--output_dir: cannot use {self.final} ({error.strerror})") from None

    def __enter__(self) -> Staging:
        try:
            self.final.parent.mkdir(parents=True, exist_ok=True)
            self.lock = self.own()
            self.claim()
        except OSError as error:
            raise InputError(f"--output_dir: cannot write {self.folder} ({error.strerror})") from None
        return self

    def claim(self) -> None:
        """Mark the hidden folder as ours, and empty it of what a run that was killed left there."""
        leftovers = [path for path in self.folder.iterdir() if path.name != MARK]
        mark = self.folder / MARK
        if leftovers and not mark.is_file():
            raise InputError(f"--output_dir: {self.folder} holds {leftovers[0].name}, which is not ours; remove it")
        if leftovers and not self.resume and mark.read_text(encoding="utf-8").strip() == RESUMABLE:
            raise InputError(f"--output_dir: {self.folder} holds a build that can go on; finish it, or remove it")
        mark.write_text(RESUMABLE if self.resume else "", encoding="utf-8")
        for leftover in [] if self.resume else leftovers:
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()

    def own(self) -> int:
        """A descriptor of the hidden folder, locked, the folder still having that name."""
        while True:
            with suppress(FileExistsError):
                self.folder.mkdir()
            try:
                lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.lexists(self.folder) and os.path.samestat(os.fstat(lock), os.lstat(self.folder)):
                    return lock
            except BlockingIOError:
                os.close(lock)
                raise InputError(f"--output_dir: {self.final} is being written by another process") from None
            os.close(lock)

    def commit(self) -> None:
        """Make every byte durable and give the folder its final name."""
        for path in self.folder.rglob("*"):
            sync(path)
        if self.exists():
            raise InputError(f"--output_dir: {self.final} appeared while it was being made")
        (self.folder / MARK).unlink()
        os.fsync(self.lock)
        self.folder.rename(self.final)

    def __exit__(self, *_: object) -> None:
        with uninterrupted():
            mine = os.path.lexists(self.folder) and os.path.samestat(os.fstat(self.lock), os.lstat(self.folder))
            if mine and not self.resume:
                shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self.lock)


def sync(path: Path) -> None:
    """Make a file, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Clean up to the end, whatever keys are pressed meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
