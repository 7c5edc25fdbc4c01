"""Text and token ids, for preprocessing, postprocessing and BLS: copied beside each model.py.

A tokenizer is asked in context wherever a piece of text is not the text's beginning, for SentencePiece tokenizers
write and drop a leading space there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Tokenizer = Any
INCOMPLETE = "\ufffd"
# Text to stand before a word; the first that the tokenizer does not merge with it is taken.
CONTEXTS = ("!", "a", "\n")
# How NVIDIA's templates spell true, in small or capital letters.
TRUE = ("true", "1", "yes", "y", "t")


def is_on(parameters: dict[str, str], name: str, default: str) -> bool:
    """A parameter that is true or false."""
    return parameters.get(name, default).lower() in TRUE


def encode(tokenizer: Tokenizer, text: str, add_special_tokens: bool = False) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
    return ids


def decode(tokenizer: Tokenizer, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
    """The text exactly as the tokens say it, no spaces tidied up; negative ids are padding."""
    text: str = tokenizer.decode(
        [int(i) for i in ids if i >= 0],
        skip_special_tokens=skip_special_tokens,
        clean_up_tokenization_spaces=False,
    )
    return text


def spellings(tokenizer: Tokenizer, word: str) -> list[list[int]]:
    """The token sequences that a word may have in a text: at its start, after a letter, after a space.

    One that ends with another is left out: whoever looks for the shorter finds the longer too.
    """
    found = [encode(tokenizer, word), after(tokenizer, word), after(tokenizer, " " + word)] if word else []
    kept: list[list[int]] = []
    for ids in sorted(filter(None, found), key=len):
        if not any(ids[len(ids) - len(shorter) :] == shorter for shorter in kept):
            kept.append(ids)
    return kept


def after(tokenizer: Tokenizer, word: str) -> list[int]:
    """The token ids of a word that does not begin its text; empty if it merges with whatever stands before it."""
    for context in CONTEXTS:
        head, whole = encode(tokenizer, context), encode(tokenizer, context + word)
        if whole[: len(head)] == head:
            return whole[len(head) :]
    return []


def word_list(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """Token sequences as TensorRT-LLM reads stop and bad words.

    Returns:
        int32 [2, tokens]: all ids in a row; below, the end of each sequence, then -1.
    """
    ids = [i for sequence in sequences for i in sequence]
    table = np.full((2, len(ids)), -1, np.int32)
    table[0] = ids
    table[1, : len(sequences)] = np.cumsum([len(sequence) for sequence in sequences], dtype=np.int32)
    return table


def stack(rows: Sequence[np.ndarray], fill: Sequence[int]) -> np.ndarray:
    """Arrays that differ in their last dimension as one batch, padded on the right.

    Args:
        rows: int32 or uint64 [..., length].
        fill: one value, or one for each line of a row.
    """
    longest = max(row.shape[-1] for row in rows)
    batch = np.empty((len(rows), *rows[0].shape[:-1], longest), rows[0].dtype)
    batch[:] = np.reshape(np.asarray(fill, rows[0].dtype), (-1, 1) if rows[0].ndim > 1 else -1)
    for filled, row in zip(batch, rows, strict=True):
        filled[..., : row.shape[-1]] = row
    return batch


def decode_piece(tokenizer: Tokenizer, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
    """The text of tokens that continue a text which is not known: a leading space is kept.

    A character whose bytes are split over two pieces comes out as U+FFFD in both.
    """
    head = encode(tokenizer, CONTEXTS[0])
    start = decode(tokenizer, head, skip_special_tokens)
    whole = decode(tokenizer, [*head, *ids], skip_special_tokens)
    return whole[len(start) :] if whole.startswith(start) else decode(tokenizer, ids, skip_special_tokens)


class IncrementalDetokenizer:
    """Text as tokens arrive; the pieces joined are what decoding all tokens at once gives.

    Each piece is read off a window: the last tokens whose text was whole, and what came since. The window is decoded
    again with every token, so that a space or a character that depends on its neighbours comes out as in one go. Text
    at the end that may be the beginning of a character waits for the rest of its bytes.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True):
        self.tokenizer, self.skip = tokenizer, skip_special_tokens
        self.window: list[int] = []
        self.whole = 0  # tokens of the window whose text was whole when the last of them came
        self.sent = 0  # characters of the window's text that are out

    def push(self, ids: Sequence[int]) -> str:
        """The text that these tokens add: "" while a character is incomplete."""
        self.window.extend(int(i) for i in ids if i >= 0)
        text = decode(self.tokenizer, self.window, self.skip)
        certain = text.rstrip(INCOMPLETE)
        piece = certain[self.sent :]
        self.sent = max(self.sent, len(certain))
        if len(certain) == len(text) and piece:
            self._advance()
        return piece

    def finish(self) -> str:
        """What still waits, when no token will follow: characters that stayed incomplete, as U+FFFD."""
        piece = decode(self.tokenizer, self.window, self.skip)[self.sent :]
        self.window, self.whole, self.sent = [], 0, 0
        return piece

    def _advance(self) -> None:
        if self.whole:
            self.window = self.window[self.whole :]
            self.sent = len(decode(self.tokenizer, self.window, self.skip))
        self.whole = len(self.window)
