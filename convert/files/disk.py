"""Files that are read without PyTorch: JSON and hashes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError, shown

# Beside a checkpoint's config.json: how it was made, and the SHA-256 of every file.
MANIFEST = "enginesmith.json"
LARGEST_JSON = 2**26
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# safetensors dtype names
DTYPE_NAMES = {
    "int8": "I8",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "uint8": "U8",
    "int32": "I32",
    "int64": "I64",
}
# Bytes of one number.
ITEM_SIZE = {
    "int8": 1,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "uint8": 1,
    "int32": 4,
    "int64": 8,
}


def open_regular(path: Path, what: str = "") -> BinaryIO:
    """A regular file, open for reading: no folder, no pipe that would never end, no device.

    Args:
        what: how to speak of the file, where its path does not say enough ("--calib").

    Raises:
        InputError: there is none, or it may not be read.
    """
    name = f"{what}: {shown_path(path)}" if what else shown_path(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        reason = "a link that leads nowhere" if os.path.islink(path) else "no such file"
        raise InputError(f"{name}: {reason}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{name}: not a regular file")
    return os.fdopen(descriptor, "rb")


def shown_path(path: Path | str) -> str:
    """A path for an error line: its end, where it is long."""
    text = str(path)
    return text if len(text) <= 120 else f"...{text[-117:]}"


def is_there(path: Path) -> bool:
    """Whether something has this name, a link that leads nowhere or in a circle too."""
    try:
        return os.path.lexists(path)
    except ValueError:  # a null character: no file has such a name
        return False


def read_text(path: Path, largest: int, what: str = "") -> str:
    """The text of a regular UTF-8 file of at most ``largest`` bytes."""
    with open_regular(path, what) as file:
        try:
            data = file.read(largest + 1)
        except OSError as error:
            raise InputError(f"{shown_path(path)}: cannot be read ({error.strerror})") from None
    if len(data) > largest:
        raise InputError(f"{shown_path(path)}: larger than the {largest / 2**20:g} MiB that such a file may have")
    return decoded(data, path)


def decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{shown_path(path)}: not UTF-8 text") from None


def read_json(path: Path, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """The JSON object in a regular file of bounded size.

    Raises:
        InputError: no such file, no JSON object, a key that is given twice, or a value that no JSON file can hold
            (NaN, infinity, half of a surrogate pair).
    """
    return parse_json(read_text(path, largest), path)


def parse_json(text: str, path: Path) -> dict[str, Any]:
    """The JSON object in a file's text, on ``read_json``'s terms."""
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse_constant, parse_float=finite)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        reason = "half of a surrogate pair in a text" if isinstance(error, UnicodeEncodeError) else str(error)
        raise InputError(f"{shown_path(path)}: not readable as JSON ({reason})") from None
    if not isinstance(value, dict):
        raise InputError(f"{shown_path(path)}: holds no JSON object")
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of some pairs; readers differ in which value of a repeated key they take."""
    made = dict(pairs)
    if len(made) < len(pairs):
        counted = Counter(key for key, _ in pairs)
        raise ValueError(f"{shown(counted.most_common(1)[0][0])} is given twice")
    return made


def refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{shown(digits)} is beyond any number")
    return number


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:
    """hashlib.file_digest for Python 3.10."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A file that ``read_json`` reads: bytes of paths that are not UTF-8 become question marks."""
    text = json.dumps(value, indent=4, allow_nan=False)
    if SURROGATE.search(text):
        text = json.dumps(value, indent=4, allow_nan=False, ensure_ascii=False).encode("utf-8", "replace").decode()
    path.write_text(f"{text}\n", encoding="utf-8")


class Hashes:
    """SHA-256 of files, computed beside the conversion."""

    def __enter__(self) -> Hashes:
        self.pool = ThreadPoolExecutor()
        self.pending: dict[str, dict[str, Future[str]]] = {}
        return self

    def add(self, kind: str, files: Mapping[str, Callable[[], str]]) -> None:
        """Begin with some files: by name, what hashes each."""
        self.pending[kind] = {name: self.pool.submit(digest) for name, digest in files.items()}

    def of(self, kind: str) -> dict[str, str]:
        """By file name, once they are known."""
        return {name: job.result() for name, job in self.pending[kind].items()}

    def wait(self) -> dict[str, dict[str, str]]:
        """By kind and file name."""
        return {kind: self.of(kind) for kind in self.pending}

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)


def text_digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
