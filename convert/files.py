"""Files that are read without PyTorch: JSON, safetensors headers, hashes, and the manifest of a conversion."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from .errors import InputError

# Beside a checkpoint's config.json: how it was made, and the SHA-256 of every file.
MANIFEST = "enginesmith.json"
LARGEST_JSON = 2**26
# safetensors dtype names
DTYPE_NAMES = {
    "int8": "I8",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
}
MANIFEST_FILES = r"rank\d+\.safetensors|config\.json|quant_cfg\.json"


def headers(path: Path) -> Iterator[tuple[str, list[int], str]]:
    """(name, shape, dtype) of every tensor in a safetensors file, bounds checked by safetensors."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a regular file")
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
                piece = file.get_slice(name)
                yield name, list(piece.get_shape()), piece.get_dtype()
    except SafetensorError as error:
        raise InputError(f"{path.name}: not a whole safetensors file ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read; is it there, and is reading permitted? ({error})") from None


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened for reading; a pipe or a device is refused at once instead of waited for.

    Raises:
        InputError: it is not a regular file, or cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(f"{path}: not a regular file")
    return os.fdopen(handle, "rb")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a regular file of bounded size."""
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > LARGEST_JSON):
            raise InputError(f"{path}: not a regular file of at most {LARGEST_JSON >> 20} MiB")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no JSON object")
    return value


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:
    """hashlib.file_digest for Python 3.10."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def section(config: dict[str, Any], key: str, file: str = "config.json") -> dict[str, Any]:
    """An object in a config, empty where there is none; file: the one it was read from, for messages."""
    value = config.get(key, {})
    if not isinstance(value, dict):
        raise InputError(f"{file}: {key} must be an object, not {value!r}")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4, allow_nan=False) + "\n", encoding="utf-8")


class Hashes:
    """SHA-256 of files, computed beside the conversion."""

    def __enter__(self) -> Hashes:
        self.pool = ThreadPoolExecutor()
        self.pending: dict[str, dict[str, Future[str]]] = {}
        return self

    def add(self, kind: str, paths: list[Path]) -> None:
        self.pending[kind] = {path.name: self.pool.submit(sha256, path) for path in paths}

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


def read_manifest(folder: Path) -> dict[str, Any]:
    """enginesmith.json; empty for a checkpoint that another converter made."""
    path = folder / MANIFEST
    return read_json(path) if path.exists() else {}


def manifest_problems(folder: Path, suspect: Callable[[Path], bool] = lambda path: True) -> list[str]:
    """Files of a checkpoint that are no longer the ones its manifest recorded; only suspects are hashed."""
    problems = []
    for name, digest in section(read_manifest(folder), "files", MANIFEST).items():
        path = folder / name
        if not re.fullmatch(MANIFEST_FILES, name):
            problems.append(f"{MANIFEST}: {name[:60]!r} is no file of a checkpoint")
        elif not path.is_file() or (suspect(path) and sha256(path) != digest):
            problems.append(f"{name}: differs from the one {MANIFEST} recorded")
    return problems
