"""Lists in which a quantization configuration names modules: each tool has its own way to match."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from typing import Any

from ...errors import InputError, shown
from ...files.reader import Reader

# A pattern may not make a short name take long: no repeated group, few repetitions and few choices.
MOST_REPETITIONS, MOST_CHOICES, LONGEST_PATTERN, MOST_PATTERNS, MOST_NAMES = 4, 16, 1000, 1000, 100_000
REPETITION, CHOICE, HARD = r"(?<!\\)[*+{]", r"(?<!\\)\||(?<![\\(])\?", r"\)\s*[*+{]|\\[1-9]|\(\?[P(<]"
Holds = Callable[[str], bool]


def names(said: Reader, key: str) -> list[str]:
    """A list of module names; empty where there is none."""
    listed = said.texts(key)
    if len(listed) > MOST_NAMES:
        raise said.wrong(key, f"a list of at most {MOST_NAMES} names")
    return listed


def pattern(text: str, file: str, key: str) -> re.Pattern[str]:
    """A regular expression of an untrusted file that takes no long time on a module's name.

    Raises:
        InputError: it may, or is none.
    """
    repetitions, choices = (len(re.findall(kind, text)) for kind in (REPETITION, CHOICE))
    hard = len(text) > LONGEST_PATTERN or re.search(HARD, text)
    if hard or repetitions > MOST_REPETITIONS or choices > MOST_CHOICES:
        raise InputError(f"{file}: {key}: pattern {shown(text)} is too complicated; name the modules instead")
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError):
        raise InputError(f"{file}: {key}: pattern {shown(text)} is no regular expression") from None


def holding(parts: Iterable[str]) -> Holds:
    """AutoAWQ's way: any of the texts lies in the name."""
    wanted = [part for part in parts if part]
    return lambda name: any(part in name for part in wanted)


def shell(patterns: Iterable[str], file: str, key: str) -> Holds:
    """ModelOpt's way: a shell pattern of the name, or of a module around it."""
    wanted = set(patterns)
    plain = {text for text in wanted if not set(text) & set("*?[")}
    compiled = [pattern_of_shell(text) for text in few(wanted - plain, file, key)]
    return lambda name: any(outer in plain for outer in outers(name)) or any(one.match(name) for one in compiled)


def exact_or_pattern(entries: Iterable[str], file: str, key: str) -> Holds:
    """compressed-tensors' way: a full name, or "re:" and a regular expression that the name begins with."""
    wanted = set(entries)
    expressions = few({entry[3:] for entry in wanted if entry.startswith("re:")}, file, key)
    patterns = [pattern(text, file, key) for text in expressions]
    return lambda name: name in wanted or any(one.match(name) for one in patterns)


def pattern_of_shell(text: str) -> re.Pattern[str]:
    """Its own regular expression never tries one place twice."""
    return re.compile(fnmatch.translate(text))


def few(patterns: set[str], file: str, key: str) -> set[str]:
    if len(patterns) > MOST_PATTERNS:
        raise InputError(f"{file}: {key} has more than {MOST_PATTERNS} patterns; name the modules instead")
    return patterns


def outers(name: str) -> list[str]:
    """A module's name and those of the modules around it."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def last_names(value: Any) -> set[str] | None:
    """The names inside a block in a list of lists, such as modules_in_block_to_quantize; None where it is no such."""
    if not isinstance(value, list):
        return None
    flat = [name for entry in value for name in (entry if isinstance(entry, list) else [entry])]
    return set(flat) if all(isinstance(name, str) for name in flat) else None


def check_known(said: Reader, known: Iterable[str]) -> None:
    """Raise InputError for a key that may change what the weights mean; what is switched off, or empty, does not."""
    active = {key: value for key, value in said.values.items() if value is not False and value not in ([], {}, "")}
    Reader(active, said.file, said.prefix).check_keys(set(known))
