"""Values of an untrusted JSON or YAML object, asked for by type: what is missing, wrong or unknown is an InputError."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any, TypeVar

from ..errors import InputError, printable, shown

LARGEST = 2**31
LARGEST_NUMBER = 1e30
LONGEST_NAME = 100
Word = TypeVar("Word", bound=str)


class Reader:
    """An object that was read from a file.

    A key that is absent and one that is null are the same; a value of a wrong type is never taken for absence.

    Args:
        values: the object.
        file: the one it was read from, for messages.
        prefix: where in the file it lies ("quantization.").
    """

    def __init__(self, values: dict[str, Any], file: str = "config.json", prefix: str = ""):
        self.values, self.file, self.prefix = values, file, prefix

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def section(self, key: str) -> Reader:
        """An object; empty where there is none."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Reader(value, self.file, f"{self.prefix}{key}.")

    def integer(self, key: str, default: int | None = None, least: int = 1, largest: int = LARGEST) -> int:
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
            raise self.wrong(key, f"an integer from {least} to {largest}")
        return value

    def number(self, key: str, default: float | None = None, largest: float = LARGEST_NUMBER) -> float:
        """A positive finite number."""
        value = self._value(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= largest:
            raise self.wrong(key, f"a positive number of at most {largest:g}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def require(self, key: str, wanted: bool, why: str) -> None:
        """Raise InputError where a flag is said that is not the wanted one."""
        if self.flag(key, wanted) != wanted:
            raise InputError(f"{self.file}: {self.prefix}{key} must be {str(wanted).lower()}: {why}")

    def integer_or_none(self, key: str) -> int | None:
        return self.integer(key) if self.has(key) else None

    def number_or_none(self, key: str) -> float | None:
        return self.number(key) if self.has(key) else None

    def text(self, key: str, default: str | None = None) -> str:
        """A name."""
        value = self._value(key, default)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, "a text")
        if not value.isprintable() or len(value) > LONGEST_NAME:
            raise self.wrong(key, f"a printable name of at most {LONGEST_NAME} characters")
        return value

    def text_or_none(self, key: str) -> str | None:
        return self.text(key) if self.has(key) else None

    def choice(self, key: str, words: Collection[Word], default: Word | None = None) -> Word:
        value = self._value(key, default)
        for word in words:
            if isinstance(value, str) and value == word:
                return word
        raise self.wrong(key, f"one of {', '.join(words)}")

    def texts(self, key: str) -> list[str]:
        """A list of texts; empty where there is none."""
        value = self._value(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of texts")
        return value

    def numbers(self, key: str) -> list[float]:
        """A list of positive finite numbers."""
        value = self._value(key, None)
        if not isinstance(value, list) or not value:
            raise self.wrong(key, "a list of positive numbers")
        return [float(Reader({key: one}, self.file, self.prefix).number(key)) for one in value]

    def check_keys(self, known: Collection[str]) -> None:
        """Raise InputError for a key that is not known; null is as good as absent."""
        for key in self.values:
            if key not in known and self.values[key] is not None:
                close = difflib.get_close_matches(str(key)[:80], known, 1)
                hint = f"did you mean {close[0]}?" if close else "nothing here reads it"
                raise InputError(f"{self.file}: unknown key {shown(f'{self.prefix}{key}')}; {hint}")

    def wrong(self, key: str, needed: str) -> InputError:
        """The refusal of a value, with what it would have to be."""
        said = f"not {shown(self.values[key])}" if self.has(key) else "but there is none"
        return InputError(f"{self.file}: {printable(self.prefix + key, 200)} must be {needed}, {said}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value
