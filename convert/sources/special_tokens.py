"""The tokens that end an answer and that fill up rows, as a tokenizer's folder states them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, shown
from ..files.disk import is_there, read_json

GENERATION_CONFIG = "generation_config.json"
MOST_ENDS = 64


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids, all of them within the engine's vocabulary.

    Attributes:
        end_ids: each ends an answer; the first is the engine's end_id, the others are stop words. May be empty.
        pad_id: fills up the rows of a batch.
        notes: what was chosen where the folder left a choice, in a line each.
    """

    end_ids: list[int]
    pad_id: int
    notes: list[str] = field(default_factory=list)


def special_tokens(tokenizer: Any, folder: Path, vocab_size: int) -> SpecialTokens:
    """The end tokens that generation_config.json lists; without it the tokenizer's EOS, and config.json's besides.

    The tokenizer's own comes first if it is among them; it is the only one where the folder states none.

    Raises:
        InputError: a list that is none of token ids of the engine.
    """
    own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if os.path.lexists(folder / GENERATION_CONFIG):
        ends = stated_ends(folder / GENERATION_CONFIG, vocab_size) or own
    else:
        ends = list(dict.fromkeys([*own, *stated_ends(folder / "config.json", vocab_size)]))
    ends.sort(key=lambda i: i not in own)  # stable: the others stay in their order
    notes = [f"end tokens: {', '.join(map(str, ends))}"] if len(ends) > 1 else []
    pad = tokenizer.pad_token_id
    if pad is not None and 0 <= pad < vocab_size:
        return SpecialTokens(ends, int(pad), notes)
    chosen = ends[0] if ends else 0
    if pad is not None:
        known = f"the engine's vocabulary ends at {vocab_size - 1}"
        notes.append(f"the pad token {shown(tokenizer.pad_token)} has id {pad}, {known}; {chosen} pads instead")
    return SpecialTokens(ends, chosen, notes)


def stated_ends(path: Path, vocab_size: int) -> list[int]:
    """A file's eos_token_id, each id once; none where there is no such file or key."""
    value = read_json(path).get("eos_token_id") if is_there(path) else None
    ids = value if isinstance(value, list) else [] if value is None or value == -1 else [value]
    good = all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab_size for i in ids)
    if not good or len(ids) > MOST_ENDS:
        raise InputError(
            f"{path}: eos_token_id is {shown(value)}; an id, or a list of at most {MOST_ENDS}, each below the engine's "
            f"vocabulary of {vocab_size} is needed"
        )
    return list(dict.fromkeys(ids))
