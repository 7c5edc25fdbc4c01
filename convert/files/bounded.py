"""Work on files of anybody's making, in a copy of this process: bounded in time and memory, and quiet."""

from __future__ import annotations

import faulthandler
import fcntl
import os
import resource
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from ..errors import InputError

# What the copy may allocate beyond what this process has.
MEMORY = 4 * 2**30
# The first byte of what the copy sends: a result, a refusal, or a fault of our own.
RESULT, REFUSAL, FAULT = b"r", b"e", b"f"


def in_child(work: Callable[[], bytes], seconds: float, blamed: str, memory: int | None = None) -> bytes:
    """What ``work`` returns, computed in a copy of this process.

    Libraries that read untrusted files may panic, write to standard error, crash, or never end: all of it stays in
    the copy.

    Args:
        seconds: of wall time after which the copy is ended.
        blamed: the subject of the sentence that says so.
        memory: bytes that the copy may allocate beyond what this process has; MEMORY where none is given.

    Raises:
        InputError: the one that ``work`` raises, or one that says how the copy ended.
    """
    memory = memory or MEMORY
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: the copy uses none of them
        child = os.fork()
    if child == 0:
        os.close(reading)
        _run(work, int(seconds), memory, writing)
    os.close(writing)
    try:
        sent = _received(reading, time.monotonic() + seconds)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if sent is None:
        raise InputError(f"{blamed} takes more than {seconds:.0f} seconds")
    kind, content = sent[:1], sent[1:]
    if kind == REFUSAL:
        raise InputError(content.decode())
    if kind == FAULT:
        raise RuntimeError(content.decode())
    if kind != RESULT:
        raise InputError(f"{blamed} crashes, or takes more than {memory / 2**30:g} GiB")
    return content


@contextmanager
def processor_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in Python code that computes for longer; for a process's main thread."""

    def expire(*_: object) -> NoReturn:
        raise TimeoutError(f"not done after {seconds:g} seconds")

    before = signal.signal(signal.SIGVTALRM, expire)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _received(reading: int, deadline: float) -> bytes | None:
    """All that the copy sends before it ends; None where it does not end in time."""
    parts: list[bytes] = []
    while select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(reading, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return None


def _run(work: Callable[[], bytes], seconds: int, memory: int, writing: int) -> NoReturn:
    """The copy's whole life."""
    try:
        writing = fcntl.fcntl(writing, fcntl.F_DUPFD, 3)  # where our standard streams are closed, the pipe may be one
        _restrict(seconds, memory)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(_outcome(work))
    finally:
        os._exit(0)


def _outcome(work: Callable[[], bytes]) -> bytes:
    try:
        return RESULT + work()
    except InputError as error:
        return REFUSAL + str(error).encode(errors="replace")
    except MemoryError:
        return b""
    except BaseException:
        return FAULT + traceback.format_exc().encode(errors="replace")


def _restrict(seconds: int, memory: int) -> None:
    """Silence, limits, and the signals of a process that its parent ends."""
    faulthandler.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_CPU, seconds + 5)  # outlives a parent that was killed by no more
    with suppress(OSError):  # only Linux says how much is in use
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        _lower(resource.RLIMIT_DATA, pages * resource.getpagesize() + memory)


def _lower(kind: int, limit: int) -> None:
    _, most = resource.getrlimit(kind)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(kind, (limit, most))
