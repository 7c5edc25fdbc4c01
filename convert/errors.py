"""The one exception that means: the input is wrong, and here is what would work; and what such a line may hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Characters of one value from a file, and of a whole line on a terminal.
SHOWN, LINE = 60, 400


class InputError(ValueError):
    """Bad usage or bad input; one line that names the file, tensor or flag (exit code 2)."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """What is refused inside is told with the name of what it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from None


def shown(value: Any) -> str:
    """A value from a file, short and printable enough for an error line."""
    if isinstance(value, str):
        text = repr(value[: SHOWN + 1])
    elif isinstance(value, (list, tuple, dict)) and len(value) > SHOWN:
        text = f"a {type(value).__name__} of {len(value)}"
    else:
        try:
            text = repr(value)
        except (ValueError, RecursionError):  # an integer of thousands of digits, or nested without end
            text = "a value too large to show"
    return printable(text, SHOWN)


def printable(text: str, limit: int = LINE) -> str:
    """Text as one line of at most ``limit`` characters; names come from files, which may hold anything."""
    words = " ".join(text[: 4 * limit].split())
    line = "".join(character if character.isprintable() else "?" for character in words)
    return line if len(line) <= limit and len(text) <= 4 * limit else f"{line[: limit - 3]}..."


def reason(error: BaseException) -> str:
    """What a library's exception says, its first line or all that a colon there announces, or its kind where it says
    nothing."""
    said = str(getattr(error, "strerror", None) or error).strip()
    if not said:
        return type(error).__name__
    first = said.splitlines()[0].rstrip()
    return printable(" ".join(said.split()) if first.endswith(":") else first, 2 * SHOWN)
