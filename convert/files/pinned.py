"""Files that are opened once: what is read, what is hashed and what is compared at the end are the same bytes."""

from __future__ import annotations

import hashlib
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import InputError, printable
from .disk import LARGEST_JSON, decoded, open_regular

# Read at once while hashing.
BLOCK = 1 << 22
# git-lfs and git-xet leave such a file where the content was not fetched.
POINTERS = (b"version https://git-lfs", b"# xet version")
# What a download begins with that got an error, or a login, instead.
PAGES = (b"<!doctype html", b"<html")
AGAIN = "start again when nothing else writes there"


class Pinned:
    """A regular file, open for reading at any place, that must stay what it was when it was opened.

    Nothing is mapped: a file that is cut while it is read gives an error and no signal. Reading is safe from
    several threads. The descriptor is closed by ``close``, or with the last reference.

    Args:
        path: the file.
        what: the flag that named it, for error messages.

    Raises:
        InputError: there is no such file, it may not be read, or it is the pointer that git-lfs leaves for one.
    """

    def __init__(self, path: Path, what: str = ""):
        self.path, self.what = path, what
        file = open_regular(path, what)
        self.close = weakref.finalize(self, file.close)
        self.descriptor = file.fileno()
        self.opened = os.fstat(self.descriptor)
        begins = self.read(0, min(self.size, 32))
        if begins.lstrip().lower().startswith(PAGES):
            raise InputError(f"{self.name}: a web page that was saved in the file's place; download it again")
        if begins.startswith(POINTERS):
            raise InputError(f"{self.name}: a pointer that git left for the file, not the file; run git lfs pull")

    @property
    def name(self) -> str:
        """For error messages."""
        return f"{self.what}: {printable(self.path.name, 80)}" if self.what else printable(self.path.name, 80)

    @property
    def size(self) -> int:
        """Bytes, when it was opened."""
        return self.opened.st_size

    def read(self, start: int, size: int) -> bytes:
        """``size`` bytes from ``start`` on."""
        data = bytearray(size)
        self.read_into(memoryview(data), start)
        return bytes(data)

    def text(self, largest: int = LARGEST_JSON) -> str:
        """The whole file, UTF-8."""
        if self.size > largest:
            raise InputError(f"{self.name}: larger than the {largest / 2**20:g} MiB that such a file may have")
        return decoded(self.read(0, self.size), self.path)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer of bytes from ``start`` on.

        Raises:
            InputError: the file ends before, cannot be read, or is not what it was.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.descriptor, [buffer[done:]], start + done)
            except OSError as error:
                raise InputError(f"{self.name}: cannot be read ({error.strerror})") from None
            if not count:
                raise InputError(f"{self.name}: was cut while it was read; {AGAIN}")
            done += count
        self.check_same()

    def sha256(self) -> str:
        """Of the whole file; a block is read while the one before is hashed."""
        digest, free = hashlib.sha256(), [memoryview(bytearray(min(BLOCK, self.size))) for _ in range(2)]

        def block(start: int) -> memoryview:
            piece = free[start // BLOCK % 2][: self.size - start]
            self.read_into(piece, start)
            return piece

        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(block, 0)
            for start in range(0, self.size, BLOCK):
                piece = coming.result()
                coming = reader.submit(block, min(start + BLOCK, self.size))
                digest.update(piece)
        return digest.hexdigest()

    def check_same(self) -> None:
        """Raise InputError if the open file was written to."""
        now = os.fstat(self.descriptor)
        if not now.st_nlink:
            raise InputError(f"{self.name}: was removed or replaced while it was read; {AGAIN}")
        if state(now) != state(self.opened):
            raise InputError(f"{self.name}: changed while it was read; {AGAIN}")

    def check_unchanged(self) -> None:
        """Raise InputError unless the path still names the file that was opened, as it was."""
        self.check_same()
        if not self.is_current():
            raise InputError(f"{self.name}: was removed or replaced while it was read; {AGAIN}")

    def is_current(self) -> bool:
        """Whether the path still names the file that was opened, as it was."""
        try:
            there = os.stat(self.path)
        except OSError:
            return False
        return os.path.samestat(there, self.opened) and state(there) == state(self.opened)


def state(status: os.stat_result) -> tuple[int, int, int]:
    """What changes with every write to a file."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
