"""Hostile files by the thousand: valid ones with something changed, and what must come of each.

Whatever a file holds, a command ends in one of three ways: it accepts, it refuses in one short printable line
(InputError), or, where it checks, it says what is wrong. A traceback is a fault; so is a change that is accepted though
nothing read it. ``tests/test_fuzz.py`` tries some thousand cases on every run, ``benchmarks/fuzz.py`` as many as asked.
"""

from __future__ import annotations

import copy
import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from enginesmith.convert.errors import LINE, InputError, printable

Draw = Callable[[st.SearchStrategy[Any]], Any]
Path = tuple[str | int, ...]

NUMBERS = [0, -1, 1, 2, 3, 7, 64, 80, 2**31, 2**31 + 1, 2**63, 10**40, 10**400, 1.0, 0.5, -0.0, 1e-320, 1e30, 1e308]
TOKENS = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "0" * 3 + "1", "1" * 5000, "tru", "'x'"]
TEXTS = [
    "",
    " ",
    "x",
    "float16",
    "none",
    "auto",
    "../x",
    "/etc/passwd",
    "a\0b",
    "\x1b[2J",
    "\ud800",
    "x" * 70_000,
    "*",
    "[",
    "é你",
]
SHAPES: list[Any] = [None, True, False, [], {}, [None], [[]], {"": None}, {"a": {"a": {"a": 1}}}, [1] * 500]
SCALARS = (
    st.sampled_from([*NUMBERS, *TEXTS, *SHAPES]) | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


class Token(str):
    """Text that stands in a JSON file as it is, without quotes."""


@dataclass(frozen=True)
class Mutant:
    """A changed file: its bytes, and what was changed, for messages and for who judges what came of it.

    Attributes:
        value: what a JSON reader would get of it; None where bytes were changed, or nothing was.
        path: the keys that lead to what was changed.
    """

    data: bytes
    how: str
    path: Path = ()
    value: Any = None


@dataclass(frozen=True)
class Outcome:
    """What a command made of a file: a refusal's line, or what it read."""

    refusal: str | None
    read: Any = None


class Fault(AssertionError):
    """A case that did not end as every case must."""


def outcome(work: Callable[[], Any]) -> Outcome:
    """Run a command's part; anything but success and a short printable refusal is a fault."""
    try:
        return Outcome(None, work())
    except InputError as error:
        line = str(error)
    if len(line) > LINE or line != printable(line):
        raise Fault(f"a refusal of {len(line)} characters, or not one printable line: {printable(line, 200)}")
    return Outcome(line)


def paths(value: Any, prefix: Path = ()) -> Iterator[Path]:
    """Every place in a JSON value, but its root."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*prefix, key)
        yield from paths(inner, (*prefix, key))


def at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


def mutant_of_json(draw: Draw, document: dict[str, Any]) -> Mutant:
    """A JSON file with one value changed, a key misspelt, added, removed or given twice; or with its bytes changed."""
    how = draw(st.sampled_from(["value"] * 6 + ["type"] * 3 + ["token", "remove", "add", "rename", "twice", "bytes"]))
    changed = copy.deepcopy(document)
    path: Path = draw(st.sampled_from(list(paths(document))))
    holder, key = at(changed, path[:-1]), path[-1]
    if how == "bytes":
        return mutant_of_bytes(draw, json.dumps(document).encode())
    if how == "value":
        holder[key] = draw(VALUES)
    elif how == "type":
        holder[key] = draw(st.sampled_from(otherwise(holder[key])))
    elif how == "token":
        holder[key] = Token(draw(st.sampled_from(TOKENS)))
    elif how == "remove":
        del holder[key]
    elif how == "add" and isinstance(holder, dict):
        key = draw(st.sampled_from(["colour", "moe", "qk_layernorm", "num_experts", "", "a\nb", "x" * 3000]))
        path = (*path[:-1], key)
        holder[key] = draw(VALUES)
    elif how == "rename" and isinstance(holder, dict):
        renamed = str(key) + draw(st.sampled_from(["s", "_", " ", "x" * 500, "\x1b"]))
        holder[renamed] = holder.pop(key)
    text = written(changed)
    if how == "twice" and isinstance(holder, dict):
        inside = json.dumps(str(key)) + ": " + written(holder[key])
        text = text.replace(inside, f"{json.dumps(str(key))}: {written(draw(VALUES))}, {inside}", 1)
    value = None if text == written(document) else changed
    return Mutant(text.encode("utf-8", "surrogatepass"), f"{how} at {path!r}"[:300], path, value)


def otherwise(value: Any) -> list[Any]:
    """The same value as another type would have it."""
    other = [str(value), [value], {"value": value}]
    if isinstance(value, bool):
        return [*other, int(value), not value]
    if isinstance(value, int):
        return [*other, float(value) if abs(value) < 2**60 else 0.0, value + 1, -value, bool(value), value * 2]
    if isinstance(value, float):
        return [*other, -value, value * 2, bool(value)]
    if isinstance(value, str):
        return [*other, value.upper(), value[:-1], value * 2, value.encode().hex()]
    return [*other, len(value) if value is not None else 0]


def written(value: Any) -> str:
    """JSON, with tokens that no JSON writer would write."""
    text = json.dumps(value, default=str)
    for token in TOKENS:
        text = text.replace(json.dumps(token), token) if contains(value, token) else text
    return text


def contains(value: Any, token: str) -> bool:
    if isinstance(value, Token):
        return value == token
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(contains(item, token) for item in inside)


def mutant_of_bytes(draw: Draw, data: bytes) -> Mutant:
    """A file with some of its bytes changed, cut off, repeated or put in."""
    how = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "empty", "huge", "nest"]))
    start = draw(st.integers(0, max(len(data) - 1, 0)))
    if how == "flip" and data:
        changed = bytearray(data)
        for _ in range(draw(st.integers(1, 4))):
            changed[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        return Mutant(bytes(changed), how)
    if how == "cut":
        return Mutant(data[:start], f"cut at {start}")
    if how == "insert":
        return Mutant(data[:start] + draw(st.binary(min_size=1, max_size=8)) + data[start:], f"insert at {start}")
    if how == "repeat":
        return Mutant(data + data[start:], f"repeated from {start}")
    if how == "nest":
        return Mutant(b"[" * 20_000 + data, how)
    return Mutant(b"" if how == "empty" else data + b" " * 2**16, how)


def mutant_of_safetensors(draw: Draw, data: bytes) -> Mutant:
    """A safetensors file whose header lies, or whose bytes were changed."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    how = draw(st.sampled_from(["header"] * 6 + ["length", "body", "bytes"]))
    if how == "header":
        inner = mutant_of_json(draw, header)
        return Mutant(struct.pack("<Q", len(inner.data)) + inner.data + body, f"header: {inner.how}", inner.path)
    if how == "length":
        lie = draw(st.sampled_from([0, 1, length - 1, length + 1, len(data), 2**31, 2**63, 2**64 - 1]))
        return Mutant(struct.pack("<Q", lie) + data[8:], f"length {lie}")
    if how == "body":
        kept = draw(st.integers(0, max(len(body) - 1, 0)))
        return Mutant(data[: 8 + length] + body[:kept], f"{kept} bytes of data")
    return mutant_of_bytes(draw, data)


def mutant_of_text(draw: Draw, text: str, words: list[str]) -> Mutant:
    """A text file of settings (YAML, protobuf text) with a word or a line exchanged, or its bytes changed."""
    how = draw(st.sampled_from(["word"] * 4 + ["number"] * 2 + ["line", "lines", "bytes"]))
    lines = text.splitlines(keepends=True)
    which = draw(st.integers(0, len(lines) - 1))
    if how == "line":
        return Mutant("".join(lines[:which] + lines[which + 1 :]).encode(), f"without line {which}")
    if how == "lines":
        return Mutant("".join([*lines[: which + 1], lines[which], *lines[which + 1 :]]).encode(), f"line {which} twice")
    if how == "bytes":
        return mutant_of_bytes(draw, text.encode())
    found = list(re.finditer(r"-?\d+(\.\d+)?" if how == "number" else r'"[^"\n]*"|[\w./*-]+', text))
    spot = draw(st.sampled_from(found)) if found else None
    if spot is None:
        return mutant_of_bytes(draw, text.encode())
    put = draw(st.sampled_from(words) | SCALARS.map(lambda value: json.dumps(value, default=str)))
    return Mutant(
        (text[: spot.start()] + put + text[spot.end() :]).encode("utf-8", "surrogatepass"),
        f"{spot[0]!r} -> {put!r}"[:300],
    )
