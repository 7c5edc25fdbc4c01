"""Protobuf's text format, as much of it as a model configuration needs.

A message is a dict, a repeated field a list, an enum value a ``Word``; strings, booleans and numbers are themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

INDENT = "  "


class Word(str):
    """Text that is written without quotes: TYPE_INT32, KIND_CPU."""


Scalar: TypeAlias = bool | int | str
Value: TypeAlias = "Scalar | Sequence[Value] | Mapping[str, Value]"
Message: TypeAlias = Mapping[str, Value]


def write(message: Message) -> str:
    """The message as text, one field a line, fields in the order of the dict."""
    return "".join(line + "\n" for name, value in message.items() for line in field(name, value))


def field(name: str, value: Value) -> list[str]:
    """The lines of one field; a list of messages repeats the field."""
    if isinstance(value, Mapping):
        inside = [INDENT + line for key, item in value.items() for line in field(key, item)]
        return [f"{name} {{", *inside, "}"] if inside else [f"{name} {{}}"]
    if isinstance(value, (bool, int, str)):
        return [f"{name}: {scalar(value)}"]
    if any(isinstance(item, Mapping) for item in value):
        return [line for item in value for line in field(name, item)]
    return [f"{name}: [{', '.join(scalar(item) for item in value if isinstance(item, (bool, int, str)))}]"]


def scalar(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, Word)):
        return str(value)
    return quoted(value)


def quoted(text: str) -> str:
    """A string literal; control characters as octal escapes, everything else as UTF-8."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\{ord(c):03o}" for c in escaped) + '"'
