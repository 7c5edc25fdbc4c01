"""Untrusted JSON: what no two readers agree on is refused, and a wrong type is never taken for absence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from enginesmith.convert.errors import LINE, SHOWN, InputError, printable, shown
from enginesmith.convert.files.disk import open_regular, read_json
from enginesmith.convert.files.reader import Reader


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "'a' is given twice"),
        ('{"deep": [{"a": 1, "a": 1}]}', "'a' is given twice"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": [-Infinity]}', "-Infinity is no number"),
        ('{"a": 1e999}', "beyond any number"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"\\uDFFF": 1}', "surrogate"),
        ("[" * 100_000, "not readable as JSON"),
        ("1" * 10_000, "not readable as JSON"),
        ("[]", "holds no JSON object"),
        ("", "not readable as JSON"),
    ],
)
def test_json_that_readers_would_part_over_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_json(path)


def test_pairs_of_surrogates_and_large_numbers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": "\\ud83d\\ude00", "b": 1e300, "c": 123456789012345678901234567890}')
    assert read_json(path) == {"a": "\U0001f600", "b": 1e300, "c": 123456789012345678901234567890}


def test_a_file_that_cannot_be_read() -> None:
    """A regular file whose first page nobody has."""
    with pytest.raises(InputError, match=r"/proc/self/mem: cannot be read \(Input/output error\)"):
        read_json(Path("/proc/self/mem"))


@pytest.mark.parametrize("make", ["fifo", "folder", "loop", "dangling", "device", "absent", "null character"])
def test_only_regular_files_are_opened(make: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if make == "fifo":
        os.mkfifo(path)
    elif make == "folder":
        path.mkdir()
    elif make == "loop":
        path.symlink_to(path)
    elif make == "dangling":
        path.symlink_to(tmp_path / "gone")
    elif make == "device":
        path = Path("/dev/zero")
    elif make == "null character":
        path = tmp_path / "a\0b"
    with pytest.raises(InputError):
        open_regular(path)


WRONG: list[tuple[str, Any, Any]] = [
    ("section", {"key": 0}, "an object"),
    ("section", {"key": ""}, "an object"),
    ("section", {"key": False}, "an object"),
    ("integer", {"key": True}, "an integer"),
    ("integer", {"key": 80.0}, "an integer"),
    ("integer", {"key": "80"}, "an integer"),
    ("integer", {"key": 0}, "an integer"),
    ("integer", {"key": 2**31 + 1}, "an integer"),
    ("integer", {}, "but there is none"),
    ("number", {"key": True}, "a positive number"),
    ("number", {"key": 0}, "a positive number"),
    ("number", {"key": 1e31}, "a positive number"),
    ("flag", {"key": 0}, "true or false"),
    ("flag", {"key": "true"}, "true or false"),
    ("text", {"key": 1}, "a text"),
    ("text", {"key": ""}, "a text"),
    ("text", {"key": "a\x1b"}, "a printable name"),
    ("text", {"key": "a" * 101}, "a printable name"),
    ("choice", {"key": "c"}, "one of a, b"),
    ("choice", {"key": ["a"]}, "one of a, b"),
    ("texts", {"key": "abc"}, "a list of texts"),
    ("texts", {"key": [1]}, "a list of texts"),
]


@pytest.mark.parametrize(("kind", "values", "words"), WRONG)
def test_a_wrong_type_is_an_error_not_absence(kind: str, values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"file.json: within.key must be .*{words}"):
        getattr(Reader(values, "file.json", "within."), kind)("key", *([("a", "b")] if kind == "choice" else []))


def test_null_is_absence() -> None:
    reader = Reader({"key": None})
    assert reader.section("key").values == {}
    assert reader.integer("key", 7) == 7
    assert reader.flag("key") is False
    assert reader.text_or_none("key") is None
    assert reader.texts("key") == []


def test_unknown_keys_are_errors_with_the_nearest_known_one() -> None:
    with pytest.raises(InputError, match=r"unknown key 'a\.hiden_size'; did you mean hidden_size"):
        Reader({"hiden_size": 1}, prefix="a.").check_keys(["hidden_size"])
    Reader({"hiden_size": None}).check_keys(["hidden_size"])


@pytest.mark.parametrize("key", ["\x1b[31m", "a\nb", "\ud800", "x" * 10**6, ""])
def test_keys_that_a_file_made_up(key: str) -> None:
    with pytest.raises(InputError, match="must be an object") as caught:
        Reader({key: {key: 1}}, prefix="a.").section(key).section(key)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        ["y"] * 10**5,
        {"z" * 10**5: 1},
        10**5000,
        -(10**5000),
        "\x1b[31m\0",
        "\ud800",
        [["q" * 10**5]],
        [10**5000],
    ],
    ids=range(9),
)
def test_values_are_shown_short_and_printable(value: Any) -> None:
    assert len(shown(value)) <= SHOWN
    assert shown(value).isprintable()


def test_lines_are_one_line_of_bounded_length() -> None:
    assert printable("a\n  b\tc") == "a b c"
    assert len(printable("x" * 10**6)) == LINE
    assert printable("\x1b[31mred\0") == "?[31mred?"
