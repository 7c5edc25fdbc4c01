"""Records of a data set on disk, read one at a time: JSON, JSON lines, parquet, arrow, and folders of them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import SHOWN, InputError, printable, reason, shown
from ..files.disk import open_regular, read_json

JSON, ARROW = (".json", ".jsonl", ".ndjson"), (".parquet", ".arrow")
# Characters of one JSON value.
LONGEST = 2**26
# Rows of a parquet file that are decoded together.
ROWS = 64
DECODER = json.JSONDecoder()
WHITE_SPACE = re.compile(r"[ \t\r\n]*")
# How the Hub names a split's files; and words that name a split in files named by hand.
SHARD, SPLIT = re.compile(r"(.+)-\d+-of-\d+"), re.compile(r"(train|test|validation|valid|val|dev|eval)(?![a-z])")


def records(path: Path, name: str, fields: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(where it stands, record) for every record of a file or folder.

    Args:
        name: what the source is called in messages.
        fields: columns that matter; others may be left out.

    Raises:
        InputError: a file that cannot be read as its ending says, or a folder that is no data set.
    """
    files = dataset_files(path, name) if path.is_dir() else [path]
    for file in files:
        where = name if file == path else f"{name}: {file.name}"
        read = arrow_records if file.suffix.lower() in ARROW else json_records
        yield from read(file, where, fields)


def dataset_files(folder: Path, name: str) -> list[Path]:
    """The files of a data set: those that save_to_disk wrote, or the parquet, arrow and JSON lines files of one split
    in the folder or its data/."""
    if (folder / "dataset_dict.json").exists():
        splits = read_json(folder / "dataset_dict.json").get("splits")
        raise InputError(f"{name} holds several splits; give the folder of one: {shown(splits)}")
    if (folder / "state.json").exists():
        return [folder / plain(file, name) for file in listed(read_json(folder / "state.json"), name)]
    endings = (*ARROW, ".jsonl", ".ndjson")
    files = [path for at in (folder, folder / "data") for path in at.glob("*") if path.suffix.lower() in endings]
    if not files:
        raise InputError(f"{name}: no data set in this folder (parquet or jsonl files, or what save_to_disk writes)")
    found = {split[1] for path in files if (split := SHARD.match(path.name) or SPLIT.match(path.name))}
    if len(found) > 1:
        raise InputError(
            f"{name} holds several splits ({printable(', '.join(sorted(found)), SHOWN)}); give one of its files"
        )
    return sorted(files)


def listed(state: dict[str, Any], name: str) -> list[Any]:
    files = state.get("_data_files")
    if not isinstance(files, list) or not files or not all(isinstance(file, dict) for file in files):
        raise InputError(f"{name}: state.json names no data files")
    return [file.get("filename") for file in files]


def plain(file: Any, name: str) -> str:
    if not isinstance(file, str) or file != Path(file).name or "\0" in file:
        raise InputError(f"{name}: state.json names {shown(file)}, which is not a file of this folder")
    return file


def json_records(path: Path, name: str, fields: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The records of a JSON array, of the one list in an object, or those that stand one after the other."""
    with open_regular(path) as file:
        values = JsonValues(file, name)
        if values.peek() == "[":
            yield from values.array()
            return
        first = next(iter(values), None)
        inner = None if first is None or values.peek() else only_list(first[1], fields)
        if inner is not None:
            yield from ((f"{name}, record {number}", item) for number, item in enumerate(inner, 1))
        elif first is not None:
            yield first
            yield from values


def only_list(value: Any, fields: tuple[str, ...]) -> list[Any] | None:
    """The one list in an object that is no record itself."""
    if not isinstance(value, dict) or value.keys() & set(fields):
        return None
    lists = [item for item in value.values() if isinstance(item, list)]
    return lists[0] if len(lists) == 1 else None


class JsonValues:
    """The JSON values in a file, one after the other, read as far as asked for."""

    def __init__(self, file: Any, name: str):
        self.file, self.name = io.TextIOWrapper(file, encoding="utf-8-sig"), name
        self.text, self.at, self.line = "", 0, 1

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        while self.peek():
            yield f"{self.name}, line {self.line}", self.value()

    def array(self) -> Iterator[tuple[str, Any]]:
        """The elements of the array that begins here."""
        separator = "["
        while self.peek() == separator:
            self.at += 1
            if self.peek() == "]" and separator == "[":
                break
            yield f"{self.name}, line {self.line}", self.value()
            separator = ","
        if self.peek() != "]":
            raise InputError(f"{self.name}, line {self.line}: not JSON (a list without end, or a comma missing in it)")

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            end = WHITE_SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            self.pass_to(end)
            if end < len(self.text) or not self.more():
                return self.text[end : end + 1]

    def value(self) -> Any:
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                line = self.line + self.text.count("\n", self.at, error.pos)
                if len(self.text) - self.at > LONGEST or not self.more():
                    raise InputError(f"{self.name}, line {line}: not JSON ({error.msg})") from None
            except (ValueError, RecursionError) as error:
                raise InputError(f"{self.name}, line {self.line}: not JSON ({reason(error)})") from None
            else:
                self.pass_to(end)
                return value

    def pass_to(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def more(self) -> bool:
        """Read on; what was passed is dropped."""
        self.text, self.at = self.text[self.at :], 0
        try:
            block = self.file.read(max(2**16, len(self.text)))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.name} is not readable as UTF-8 text ({reason(error)})") from None
        self.text += block
        return bool(block)


def arrow_records(path: Path, name: str, fields: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The rows of a parquet or arrow file; of those that have any, only the columns in ``fields``."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{name}: reading {path.suffix} files needs pyarrow; pip install pyarrow") from None
    number = 0
    with open_regular(path) as file:
        try:
            if path.suffix.lower() == ".parquet":
                table = parquet.ParquetFile(file)
                wanted = [column for column in table.schema_arrow.names if column in fields]
                batches = table.iter_batches(ROWS, columns=wanted or None, use_threads=False)
            else:
                magic = file.read(6)
                file.seek(0)
                batches = arrow_batches(arrow.ipc, file, magic == b"ARROW1")
            for batch in batches:
                for start in range(0, batch.num_rows, ROWS):
                    for row in batch.slice(start, ROWS).to_pylist():
                        number += 1
                        yield f"{name}, record {number}", row
        except (arrow.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{name}: not readable as {path.suffix[1:]} ({reason(error)})") from None


def arrow_batches(ipc: Any, file: Any, seekable: bool) -> Iterator[Any]:
    """Record batches of either of Arrow's two file formats."""
    if not seekable:
        yield from ipc.open_stream(file)
        return
    table = ipc.open_file(file)
    yield from (table.get_batch(index) for index in range(table.num_record_batches))
