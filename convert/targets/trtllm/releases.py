"""TensorRT-LLM's releases, as far as checkpoints depend on them."""

from __future__ import annotations

# The first and the last one that this project writes for.
FIRST, LAST = "0.16.0", "1.2.1"


def number(version: str) -> tuple[int, ...]:
    """A version as numbers to compare: "1.2.1" -> (1, 2, 1); what follows a part that is no number is dropped."""
    parts: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        parts.append(int(part))
    return tuple(parts)
