"""Something untrusted, tried in a process of its own that may neither go on for ever nor fill the memory."""

from __future__ import annotations

import os
import resource
import select
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ANSWER_LIMIT = 2**12  # bytes
FAILED = 2


def bounded(work: Callable[[], str], seconds: float, memory: int) -> str:
    """What work() returns, run in a copy of this process; or, in a few words, how it overran.

    Args:
        work: pure Python, whose answer is short.
        seconds: until it must have answered.
        memory: bytes that it may take besides what this process has.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: the copy uses none of them
        child = os.fork()
    if child == 0:
        _answer(work, writing, memory)
    os.close(writing)
    answer = None
    try:
        answer = _read(reading, time.monotonic() + seconds)
    finally:
        os.close(reading)
        if answer is None:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if answer is None:
        return f"not within {seconds:g} s"
    if os.waitstatus_to_exitcode(status) != 0:
        return f"not within {memory >> 20} MiB of memory"
    return answer.decode("utf-8", "replace")


def _answer(work: Callable[[], str], writing: int, memory: int) -> None:
    """The copy's whole life: no clean-up of the process that it was copied from is run."""
    try:
        with suppress(OSError, ValueError):
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        os.write(writing, work().encode("utf-8", "replace")[:ANSWER_LIMIT])
        os._exit(0)
    finally:
        os._exit(FAILED)


def _read(reading: int, until: float) -> bytes | None:
    """Everything that comes through a pipe before it is closed; None if it is not closed in time."""
    data = b""
    while (left := until - time.monotonic()) > 0:
        if not select.select([reading], [], [], left)[0]:
            break
        block = os.read(reading, ANSWER_LIMIT)
        if not block:
            return data
        data += block
    return None
