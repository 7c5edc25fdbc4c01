"""Standard streams that may be closed, full, or a pipe that nobody reads: what that means for a command."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

from ..convert.files.staging import ENDING


class OutputLost(BaseException):
    """Standard output could not be written. No Exception, so that no library takes it for a fault of its own."""


class Stream:
    """A standard stream whose failures are OutputLost, or nothing at all.

    Args:
        stream: None where it was closed from the start.
        matters: whether a failure is told; a command goes on without its progress.
    """

    def __init__(self, stream: TextIO | None, matters: bool):
        self.stream, self.matters = stream, matters
        self.lost = None if stream is not None else "it is closed"

    def write(self, text: str) -> int:
        if self.stream is not None and self.lost is None:
            try:
                return self.stream.write(text)
            except UnicodeEncodeError:  # a path that is not UTF-8
                encoding = self.stream.encoding
                return self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            except (OSError, ValueError) as error:
                self.lose(error)
        self.tell()
        return len(text)

    def flush(self) -> None:
        if self.stream is not None and self.lost is None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self.lose(error)
                self.tell()

    def lose(self, error: OSError | ValueError) -> None:
        """Send what is still to be written nowhere, so that the interpreter's end finds no fault either."""
        self.lost = getattr(error, "strerror", None) or str(error)
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())

    def tell(self) -> None:
        if self.matters:
            raise OutputLost(f"standard output cannot be written ({self.lost})")

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        if self.stream is None:
            raise OSError("there is no such stream")
        return self.stream.fileno()

    @property
    def encoding(self) -> str:
        return "utf-8" if self.stream is None else self.stream.encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Have sys.stdout and sys.stderr whatever the process was given, and no data file in a standard stream's place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Stream(before[0], matters=True), Stream(before[1], matters=False)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP end a command alike, leaving nothing half-written: ``with Interrupts() as asked``.

    A signal that the process was started to ignore stays ignored.

    Args:
        numbers: those of them that are answered.

    Attributes:
        came: whether one came. An interrupted library may raise whatever it likes.
    """

    def __init__(self, numbers: Sequence[signal.Signals] = ENDING) -> None:
        self.numbers = numbers
        self.came = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in self.numbers if threading.current_thread() is threading.main_thread() else ():
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.before[number] = signal.signal(number, self.interrupt)
        return self

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
