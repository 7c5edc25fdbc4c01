"""Folders and files that appear under their final name only when they are complete.

What is made lies in a hidden folder beside its final place, with a mark that says whose it is, and is renamed at the
end. So the final name never holds half a result, whatever ends the process, and the same command runs again:

    .out.partial/.made-by-enginesmith     the mark
    .out.partial/out                      what is being made, renamed to out
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

from ..errors import InputError

# In the hidden folder while something is made in it: says that it is ours to empty.
MARK = ".made-by-enginesmith"
# What the mark says where another run may go on with the content, and of content that was complete.
RESUMABLE, COMMITTED = "resumable", "committed"
LONGEST_MARK = 200
# Signals that ask a command to end.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def partial_of(final: str | Path) -> Path:
    """The hidden folder in which something is made."""
    path = absolute(final)
    return path.parent / f".{path.name}.partial"


def absolute(path: str | Path) -> Path:
    """A path from the root, as the system reads it: what is before the name resolved, the name itself no link yet."""
    whole = Path.cwd() / path
    if whole.name in ("", ".."):
        return Path(os.path.realpath(whole))
    return Path(os.path.realpath(whole.parent)) / whole.name


class Partial:
    """A file or folder while it is being made: ``with Partial(final) as it: ... it.content ...; it.commit()``.

    Leaving without commit removes it. What a killed run left behind is removed by the next one, and so is what had its
    name already when the block ended otherwise: the mark stays and says so. The hidden folder itself is the lock that
    keeps two runs apart: held from before its first file until after its last name.

    Args:
        final: what to make.
        flag: the option that named it, for messages.
        resume: keep what an earlier run left behind, and what this one leaves.
        replace: the final name may be taken, by a file.

    Attributes:
        content: where it is made.

    Raises:
        InputError: the final name is taken, its parent cannot be written, another run is making it, or the hidden
            name is taken by something that no run made.
    """

    def __init__(self, final: str | Path, flag: str = "--output_dir", resume: bool = False, replace: bool = False):
        self.given, self.flag, self.resume, self.replace = final, flag, resume, replace
        if "\0" in str(final):
            raise InputError(f"{flag}: a name with a null character is none")
        self.final, self.hidden = absolute(final), partial_of(final)
        self.content, self.mark = self.hidden / self.final.name, self.hidden / MARK
        self.has_its_name = False
        self.check_free()

    def check_free(self) -> None:
        """Raise InputError if the final name is taken, but for what a killed run had just made."""
        taken = os.path.lexists(self.final) and not self.replace
        if taken and not self.unfinished():
            raise InputError(f"{self.flag}: {self.given} exists; remove it or choose another name")

    def unfinished(self) -> bool:
        """Whether what has the final name was put there by a run that was killed at that very moment."""
        return os.path.lexists(self.final) and self.said() == committed(self.final)

    def said(self) -> str:
        """What the mark says; "" where there is none."""
        try:
            descriptor = os.open(self.mark, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return ""
        with os.fdopen(descriptor, "rb") as file:
            return file.read(LONGEST_MARK).decode(errors="replace").strip()

    def __enter__(self) -> Partial:
        try:
            self.final.parent.mkdir(parents=True, exist_ok=True)
            self.lock = self.own()
        except OSError as error:
            raise InputError(f"{self.flag}: cannot write {self.hidden} ({error.strerror})") from None
        try:
            self.claim()
        except (InputError, OSError) as error:
            with suppress(OSError):
                self.hidden.rmdir()  # if it is empty
            os.close(self.lock)
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.flag}: cannot write {self.hidden} ({error.strerror})") from None
        return self

    def own(self) -> int:
        """A descriptor of the hidden folder, locked, the folder still having that name."""
        while True:
            with suppress(FileExistsError):
                self.hidden.mkdir()
            try:
                lock = os.open(self.hidden, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.lexists(self.hidden) and os.path.samestat(os.fstat(lock), os.lstat(self.hidden)):
                    return lock
            except BlockingIOError:
                os.close(lock)
                raise InputError(f"{self.flag}: {self.final} is being written by another process") from None
            os.close(lock)

    def claim(self) -> None:
        """Mark the hidden folder as ours, and empty it of what a run that was killed left there."""
        leftovers = [path for path in self.hidden.iterdir() if not path.name.startswith(MARK)]
        if leftovers and not self.mark.is_file():
            raise InputError(f"{self.flag}: {self.hidden} holds {leftovers[0].name}, which is not ours; remove it")
        said = self.said()
        if leftovers and not self.resume and said == RESUMABLE:
            raise InputError(f"{self.flag}: {self.hidden} holds a build that can go on; finish it, or remove it")
        self.check_free()  # again, for another run may have ended since
        if not (self.resume and said.startswith((RESUMABLE, COMMITTED))):
            for leftover in leftovers:
                remove(leftover)
        if not self.replace and self.unfinished():
            self.final.rename(self.content)
            if not self.resume:
                remove(self.content)
        self.write_mark(RESUMABLE if self.resume else "")

    def write_mark(self, text: str) -> None:
        """Replace the mark at once; there is never a moment without one."""
        if self.mark.is_file() and self.said() == text:
            return
        draft = self.hidden / f"{MARK}.new"
        draft.write_text(text, encoding="utf-8")
        draft.replace(self.mark)

    def commit(self) -> None:
        """Make every byte durable and give what was made its final name."""
        for path in [self.content, *self.content.rglob("*")]:
            sync(path)
        if not self.replace and os.path.lexists(self.final):
            raise InputError(f"{self.flag}: {self.final} appeared while it was being made")
        self.write_mark(committed(self.content))
        self.content.rename(self.final)
        self.has_its_name = True
        sync(self.final.parent)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with uninterrupted():
            mine = os.path.lexists(self.hidden) and os.path.samestat(os.fstat(self.lock), os.lstat(self.hidden))
            kept = kind is not None if self.has_its_name else self.resume
            if mine and not kept:
                for path in sorted(self.hidden.iterdir(), key=lambda path: path.name == MARK):
                    with suppress(OSError):
                        remove(path)
                with suppress(OSError):
                    self.hidden.rmdir()
            os.close(self.lock)


class Staging(Partial):
    """A folder while it is being made: ``with Staging(final) as staging: ... staging.folder ...; staging.commit()``."""

    def __enter__(self) -> Staging:
        super().__enter__()
        return self

    def claim(self) -> None:
        super().claim()
        self.folder = self.content
        self.folder.mkdir(exist_ok=True)


@contextmanager
def whole_file(final: str | Path, flag: str) -> Iterator[Path]:
    """Where to write a file that appears under its name, and replaces one, when the block ends well."""
    with Partial(final, flag, replace=True) as partial:
        yield partial.content
        partial.commit()


def committed(path: Path) -> str:
    """What the mark says of content that is given its name: which one it was, in words that renaming leaves true."""
    try:
        found = os.lstat(path)
    except OSError:
        return ""
    return f"{COMMITTED} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"


def remove(path: Path) -> None:
    """Remove a file or a folder with all that lies in it, if it is there; of a link only itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
