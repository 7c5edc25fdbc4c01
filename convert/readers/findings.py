"""What a rule finds: a verdict, and one sentence that says where and what would work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import printable

# From harmless to harmful: a refusal is loud, a misreading is not.
READS, UNKNOWN, REFUSES, MISREADS = VERDICTS = ("reads", "unknown", "refuses", "misreads")
Findings = Iterator["Finding"]


@dataclass(frozen=True)
class Finding:
    """One thing that a runtime does with a folder.

    Attributes:
        verdict: READS where it is worth a note only; UNKNOWN where nobody has tried.
    """

    verdict: str
    text: str


def note(text: str) -> Finding:
    return Finding(READS, text)


def unknown(text: str) -> Finding:
    return Finding(UNKNOWN, text)


def refuses(text: str) -> Finding:
    return Finding(REFUSES, text)


def misreads(text: str) -> Finding:
    return Finding(MISREADS, text)


def some(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{printable(names[0], 120)}{more}"
