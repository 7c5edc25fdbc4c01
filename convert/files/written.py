"""The files that a run has written into its hidden folder: what is hashed and named at the end is what was written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError, printable
from .pinned import AGAIN, Pinned


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
            InputError: another file has its name by now.
        """
        file = Pinned(path, "--output_dir")
        if status is not None and not os.path.samestat(file.opened, status):
            raise InputError(f"{file.name}: was replaced while it was written; {AGAIN}")
        self.files[path.name] = file

    def digests(self) -> dict[str, Callable[[], str]]:
        """What hashes each file, by name."""
        return {name: self.files[name].sha256 for name in sorted(self.files)}

    def check(self) -> None:
        """Raise InputError unless the folder holds these files, as they were written, and no others."""
        for file in self.files.values():
            file.check_unchanged()
        others = {path.name for path in self.folder.iterdir()} - self.files.keys()
        if others:
            raise InputError(f"--output_dir: {printable(min(others), 80)}: was put there by someone else; {AGAIN}")


@contextmanager
def plain_disk_errors(output_dir: str) -> Iterator[None]:
    """A full disk or a quota is bad input, not a crash."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InputError(f"--output_dir: cannot write {output_dir} ({error.strerror})") from None
        raise
