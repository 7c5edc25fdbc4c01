"""Stop words found on the text of an answer, however tokens divide it: copied beside model.py of BLS.

An answer ends where the first stop word to be complete begins; of several that are complete at once, the longest
counts. Read as a whole or piece by piece, the same text is left.
"""

from __future__ import annotations

from collections.abc import Sequence


def cut(text: str, words: Sequence[str], start: int = 0) -> tuple[str, bool]:
    """The text up to its first stop word, and whether there is one.

    Args:
        words: none of them empty.
        start: characters at the beginning in which nothing is looked for.
    """
    found = [(at + len(word), at) for word in words if (at := text.find(word, start)) >= 0]
    return (text[: min(found)[1]], True) if found else (text, False)


class StopWatch:
    """Text on its way to a client: what may be the beginning of a stop word waits until it is known not to be.

    Attributes:
        ended: a stop word came; nothing more goes out.
    """

    def __init__(self, words: Sequence[str]):
        self.words = words
        self.held = ""
        self.ended = False

    def push(self, piece: str) -> str:
        """What may go out now that this piece has come."""
        if self.ended:
            return ""
        text, self.ended = cut(self.held + piece, self.words)
        waiting = 0 if self.ended else max((overlap(text, word) for word in self.words), default=0)
        self.held = text[len(text) - waiting :]
        return text[: len(text) - waiting]

    def finish(self) -> str:
        """What still waits, when nothing will follow."""
        rest, self.held = self.held, ""
        return rest


def overlap(text: str, word: str) -> int:
    """The most characters at the text's end that begin the word without completing it."""
    longest = min(len(word) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(word[:size])), 0)
