"""What an option may be: type, bounds and words stand beside its default, and hold wherever the option is given.

    class MyOptions(Options):
        tp_size: int = bounded(1, least=1)

The Python functions, the command line and recipes refuse the same values with the same sentence.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import Field, dataclass, field, fields
from functools import cache
from types import UnionType
from typing import Any, get_args, get_type_hints

from ..errors import InputError, printable, shown

TEXTS = tuple[str, ...]
LARGEST = 2**31 - 1
# Characters of a list of words in a refusal.
LISTED = 250
# Bytes of a file's name, and characters of a path, that file systems take.
LONGEST_NAME, LONGEST_PATH = 255, 4095


@dataclass(frozen=True)
class Rule:
    """What the type of an option does not say.

    Attributes:
        least, most: of a number.
        above: what a number must be more than.
        words: all that a text, or a number, may be; texts are read in any case.
        none: the word for None.
        path: a text is the path of a file or folder, which may be any os.PathLike.
        empty: a text may be.
        read: what makes a value of what is given, for what the type does not say; of (value, where).
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    words: tuple[Any, ...] = ()
    none: str | None = None
    path: bool = False
    empty: bool = False
    read: Callable[[Any, str], Any] | None = None


def bounded(default: Any, **rule: Any) -> Any:
    """A field of an options class; rule: the attributes of Rule."""
    return field(default=default, metadata={"rule": Rule(**rule)})


class Option:
    """One field of an options class."""

    def __init__(self, owner: type[Any], name: str):
        self.item: Field[Any] = next(item for item in fields(owner) if item.name == name)
        self.rule: Rule = self.item.metadata.get("rule", Rule())
        hint = TYPES(owner)[name]
        self.kinds: tuple[Any, ...] = get_args(hint) if isinstance(hint, UnionType) else (hint,)

    def accepted(self, value: Any, where: str) -> Any:
        """The value, a word in the spelling that the option has.

        Args:
            where: what gave it, for messages ("--tp_size", "recipe.yaml: convert.tp_size").

        Raises:
            InputError: a value that the option cannot have.
        """
        if self.rule.read is not None:
            return self.rule.read(value, where)
        if value is None and type(None) in self.kinds:
            return None
        if self.rule.none is not None and isinstance(value, str) and value.lower() == self.rule.none:
            return None
        if self.rule.words:
            return self.word(value, where)
        if self.rule.empty and value == "":
            return value
        if self.rule.path:
            return path_of(value, where)
        if not self.fits(value):
            raise InputError(f"{where} is {shown(value)}; {self.needed().strip()} is needed")
        return tuple(value) if self.kinds == (TEXTS,) else value

    def word(self, value: Any, where: str) -> Any:
        known = {str(word).upper(): word for word in self.rule.words}
        same = known.get(value.upper()) if isinstance(value, str) else value
        if same in self.rule.words and not isinstance(value, bool):
            return same
        words = [str(word) for word in (self.rule.none, *self.rule.words) if word is not None]
        close = difflib.get_close_matches(str(value)[:80].upper(), words, 1) if isinstance(value, str) else []
        listed = ", ".join(words)
        more = "; --help lists them all" if len(listed) > LISTED else ""
        hint = f"did you mean {close[0]}?" if close else f"use one of: {printable(listed, LISTED)}{more}"
        raise InputError(f"{where} is {shown(value)}; {hint}")

    def fits(self, value: Any) -> bool:
        if self.kinds == (TEXTS,):
            return isinstance(value, (list, tuple)) and all(usable(text) for text in value)
        if isinstance(value, bool):
            return bool in self.kinds
        if isinstance(value, str):
            return str in self.kinds and usable(value)
        if isinstance(value, int) or (isinstance(value, float) and float in self.kinds):
            above = self.rule.above
            return self.is_number and self.least <= value <= self.most and (above is None or value > above)
        return False

    @property
    def is_number(self) -> bool:
        return int in self.kinds or float in self.kinds

    @property
    def least(self) -> float:
        return -self.most if self.rule.least is None else self.rule.least

    @property
    def most(self) -> float:
        if self.rule.most is not None:
            return self.rule.most
        return LARGEST if int in self.kinds else sys.float_info.max

    def needed(self) -> str:
        """What the option needs, in words."""
        if self.kinds == (TEXTS,):
            return "a list of texts, none of them empty,"
        if int in self.kinds:
            return f"a whole number from {self.least} to {self.most}"
        if float in self.kinds:
            rule = self.rule
            named = {"from": rule.least, "above": rule.above, "at most": rule.most}
            return "a finite number " + ", ".join(f"{word} {x:g}" for word, x in named.items() if x is not None)
        return "true or false" if bool in self.kinds else "a text that is not empty"


def usable(text: Any) -> bool:
    """Whether it is a text that can be a name: not empty, no null character, no half of a surrogate pair."""
    try:
        return isinstance(text, str) and text != "" and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def path_of(value: Any, where: str) -> str:
    """The path that a text, or an os.PathLike, is.

    Raises:
        InputError: anything else, or one that no file can have.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not usable(path):
        raise InputError(f"{where} is {shown(value)}; a text that is not empty is needed")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.split(os.sep)) or len(path) > LONGEST_PATH:
        raise InputError(f"{where}: {printable(path, 60)} is longer than the name of a file can be")
    return str(path)


@dataclass(frozen=True)
class Options:
    """Options that are checked where they are made, words in the spelling that they have.

    Raises:
        InputError: a value that a field cannot have.
    """

    def __post_init__(self) -> None:
        for item in fields(self):
            value = Option(type(self), item.name).accepted(getattr(self, item.name), f"--{item.name}")
            object.__setattr__(self, item.name, value)


def meant(word: Any, names: Collection[str]) -> str:
    """What somebody may have meant by a name that is none of these."""
    close = difflib.get_close_matches(str(word)[:80], names, 1)
    return f"; did you mean {close[0]}?" if close else f"; it may have {', '.join(list(names)[:12])}"


# The types of a class's fields; read once.
TYPES: Callable[[Any], dict[str, Any]] = cache(get_type_hints)
