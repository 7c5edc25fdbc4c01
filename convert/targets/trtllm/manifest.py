"""enginesmith.json beside a checkpoint, read back: it is a file like any other, so its form is checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError, shown
from ...files.disk import MANIFEST, is_there, read_json, sha256
from ...files.reader import Reader
from .packing import GENERATIONS

CONFIG, QUANT_CFG = "config.json", "quant_cfg.json"
FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """What a conversion recorded of its checkpoint; nothing at all where another converter made it.

    Attributes:
        folder: the checkpoint.
        there: whether there is a manifest.
        files: SHA-256 of the checkpoint's files, by name.
        source: SHA-256 of the source model's files, by name.
        rotation: seed of the rotation of the residual stream; None where it was not rotated.
        packed_for_sm: the GPU generation that packed integers are arranged for, where there are any.
        sliding_window: attention window of the model in tokens, or None.
        windows: of layers that have different ones, going round; None in it is none.
    """

    folder: Path
    there: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    rotation: int | None = None
    packed_for_sm: int | None = None
    sliding_window: int | None = None
    windows: tuple[int | None, ...] = ()

    def check_files(self, ranks: int, mixed: bool) -> None:
        """Raise InputError unless the manifest names exactly the files that a checkpoint consists of.

        Args:
            ranks: how many there are.
            mixed: there is a quant_cfg.json.
        """
        if not self.there:
            return
        needed = {CONFIG, *([QUANT_CFG] if mixed else []), *(f"rank{rank}.safetensors" for rank in range(ranks))}
        for name in sorted(needed - self.files.keys()):
            raise InputError(f"{MANIFEST}: no SHA-256 of {name} in files; convert again, or remove {MANIFEST}")
        for name in sorted(self.files.keys() - needed):
            raise InputError(f"{MANIFEST}: files has {name}, which config.json's mapping and quantization do not")

    def problems(self, suspect: Callable[[Path], bool] = lambda path: True) -> list[str]:
        """Files that are no longer the ones that were recorded; only suspects are hashed."""
        return [
            f"{name}: differs from the one {MANIFEST} recorded"
            for name, digest in self.files.items()
            if not (path := self.folder / name).is_file() or (suspect(path) and sha256(path) != digest)
        ]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder.

    Raises:
        InputError: one that cannot be read, or that says something of a wrong kind.
    """
    path = folder / MANIFEST
    if not is_there(path):
        return Manifest(folder)
    said = Reader(read_json(path), MANIFEST)
    if not said.has("files"):
        raise said.wrong("files", "an object with the SHA-256 of each file")
    files = said.section("files").values
    for name in files:
        if not FILE.fullmatch(name):
            raise InputError(f"{MANIFEST}: {shown(name)} is no file of a checkpoint")
    packed = said.integer("packed_for_sm") if said.has("packed_for_sm") else None
    if packed is not None and packed not in GENERATIONS:
        raise said.wrong("packed_for_sm", f"one of {', '.join(map(str, GENERATIONS))}")
    return Manifest(
        folder,
        True,
        digests(files),
        digests(said.section("source").values),
        said.section("options").integer("seed", least=0, largest=2**63 - 1) if said.flag("rotated") else None,
        packed,
        said.integer("sliding_window") if said.has("sliding_window") else None,
        windows_of(said, "attention_windows"),
    )


def windows_of(said: Reader, key: str) -> tuple[int | None, ...]:
    """A list of windows in tokens, null for none; empty where there is no list."""
    values = said.values.get(key)
    if values is None:
        return ()
    if not isinstance(values, list) or not values:
        raise said.wrong(key, "null, or a list of windows")
    return tuple(None if one is None else Reader({key: one}, said.file, said.prefix).integer(key) for one in values)


def digests(files: dict[str, Any]) -> dict[str, str]:
    """SHA-256 by file name, each 64 hexadecimal digits."""
    for name, digest in files.items():
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise InputError(
                f"{MANIFEST}: {shown(digest)} is no SHA-256 of {shown(name)}, which has 64 hexadecimal digits"
            )
    return files
