"""What files and libraries say, made fit for an error line."""

from __future__ import annotations

from typing import Any

LONGEST = 120


def brief(value: Any) -> str:
    """A value from a file: printable, and at most ``LONGEST`` characters."""
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a huge number"
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def reason(error: BaseException) -> str:
    """The first line of what an exception says, or its kind where it says nothing."""
    said = getattr(error, "strerror", None) or str(error)
    lines = said.strip().splitlines() if isinstance(said, str) else []
    return brief(lines[0]) if lines else type(error).__name__
