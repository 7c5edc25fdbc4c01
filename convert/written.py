"""The files that a run has written into its hidden folder: what is hashed and named at the end is what was written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .errors import InputError, printable
from .pinned import Pinned
from .staging import MARK


class Written:
    """Files of one folder, kept open from their last byte until the folder gets its name.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path):
        self.folder, self.files = folder, dict[str, Pinned]()

    def add(self, path: Path, status: os.stat_result | None = None) -> None:
        """A file that is complete.

        Args:
            status: of its descriptor when it was closed.

        Raises:
            InputError: another file has its name by now, or it is not as it was.
        """
        try:
            file = Pinned(path)
        except InputError:
            raise self.meddled(path.name, "was removed") from None
        if status is not None and not (os.path.samestat(file.opened, status) and file.size == status.st_size):
            raise self.meddled(path.name, "was changed")
        self.files[path.name] = file

    def digests(self) -> dict[str, Callable[[], str]]:
        """What hashes each file, by name."""
        return {name: self.files[name].sha256 for name in sorted(self.files)}

    def check(self) -> None:
        """Raise InputError unless the folder holds these files, as they were written, and no others."""
        for name, file in self.files.items():
            try:
                file.check_unchanged()
            except InputError:
                raise self.meddled(name, "was changed or removed") from None
        others = {path.name for path in self.folder.iterdir()} - self.files.keys() - {MARK}
        if others:
            raise self.meddled(min(others), "was put there")

    def meddled(self, name: str, what: str) -> InputError:
        where = f"--output_dir: {printable(self.folder.name, 80)}/{printable(name, 80)}"
        return InputError(f"{where}: {what} by someone else while it was being made; start again")
