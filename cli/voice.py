"""Where torchrun started a command, a process for each rank: one of them speaks, and one tells why it failed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from ..convert.errors import InputError
from ..convert.files.staging import ENDING
from ..convert.peers import check_started, fails_first, part, started

# Commands that execute a rank in each process.
TOGETHER = ("verify", "generate", "bench")


def check_together(command: str | None) -> None:
    """Raise InputError for a command that several processes would do each for itself, or that could not meet."""
    check_started()
    if started().size > 1 and command not in TOGETHER:
        raise InputError(f"{command}: only {', '.join(TOGETHER)} run under torchrun; start it without")


@contextmanager
def one_voice() -> Iterator[TextIO]:
    """Whatever any process but the first writes goes nowhere; gives what a failure is told to all the same."""
    if started().rank == 0:
        yield sys.stderr
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(2), "w") as voice, open(os.devnull, "w") as nowhere:
        for descriptor in (1, 2):
            os.dup2(nowhere.fileno(), descriptor)
        yield voice


def ending() -> tuple[signal.Signals, ...]:
    """Signals that a command answers; SIGTERM is how torchrun ends processes that another has left, at once."""
    return tuple(number for number in ENDING if started().size == 1 or number != signal.SIGTERM)


def leave(code: int, line: str, voice: TextIO) -> None:
    """End a process that may be one of several: what all found is the first one's to say, in its exit code too; a
    failure is said by who failed before all others, which torchrun ends then."""
    if started().size == 1:
        tell(line, voice)
        return
    if line and fails_first():
        tell(line, voice)
    if not line:
        part()
        code = code if started().rank == 0 else 0
    sys.stdout.flush()
    voice.flush()
    os._exit(code)  # nothing waits for a process that is no more


def tell(line: str, voice: TextIO) -> None:
    if line:
        print(line, file=voice)
