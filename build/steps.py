"""What becomes of the steps of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DONE, UNCHANGED, FAILED, NOT_HERE = "done", "unchanged", "failed", "not here"


@dataclass
class Step:
    """What became of one step.

    Attributes:
        status: DONE, UNCHANGED, FAILED, or NOT_HERE where this machine lacks what it needs.
        inputs, outputs: SHA-256 of what it was made from, and of what it made.
        result: what it found, or why it did not run.
    """

    name: str
    status: str
    inputs: str
    outputs: str | None
    result: dict[str, Any]
