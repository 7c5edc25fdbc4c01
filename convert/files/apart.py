"""What a command reads is never written to or removed: checked in one place, before anything is made."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import InputError
from .disk import shown_path
from .staging import partial_of

# A place in the file system: (device, inode) of what is there, a path where nothing is yet.
Place = tuple[int, int] | str
# Names on the way to a file, links followed; the system follows some 40.
LONGEST_WAY = 10_000
UNUSABLE = (errno.ELOOP, errno.ENAMETOOLONG)


def check_apart(reads: Mapping[str, str | Path | None], writes: Mapping[str, str | Path | None]) -> None:
    """Raise InputError if something that is written or removed is, holds or lies in something that is read.

    Links are followed, and are themselves read, as are the folders a path leaves by ".."; so are the files in a
    folder that is read, whatever other names they have. Where something is made it is made in a hidden folder beside,
    which counts as well. None is a path that was not given.

    Args:
        reads, writes: paths by the option that names them, for messages.
    """
    written = [
        (flag, path, (above(Path(path), flag), above(partial_of(path), flag)))
        for flag, path in writes.items()
        if path is not None
    ]
    for flag, path, (final, _) in written:
        for other, _, (made, _) in written:
            if flag != other and made[0] in final:
                raise InputError(f"{flag}: {shown_path(path)} lies in what {other} makes; choose another place")
    for read_flag, read in reads.items():
        for source in read_of(read) if read is not None else ():
            around = above(source, read_flag)
            passed = {place for by in way(source) for place in above(by, read_flag)}
            for flag, path, places in written:
                for place in places:
                    if around[0] in place:
                        raise InputError(
                            f"{flag}: {shown_path(path)} lies in {read_flag} {shown_path(read or '')}, which is never "
                            "written to; choose another place"
                        )
                    if place[0] in around or place[0] in passed:
                        raise InputError(
                            f"{flag}: {shown_path(path)} would be written over {read_flag} {shown_path(read or '')}; "
                            "choose another place"
                        )


def read_of(read: str | Path) -> Iterator[Path]:
    """A path that is read; if it is a folder also the files in it, and in a data set's ``data``, that lie elsewhere or
    have other names too."""
    yield Path(read)
    for folder in (Path(read), Path(read) / "data"):
        try:
            with os.scandir(folder) as entries:
                files = [Path(entry.path) for entry in entries if os.path.isfile(entry.path)]
        except (OSError, ValueError):
            return  # no folder, or none that can be read: the command says so itself
        yield from (file for file in files if folder.is_symlink() or file.is_symlink() or file.stat().st_nlink > 1)


def way(path: Path) -> Iterator[Path]:
    """Folders without which a path leads nowhere, though its end lies elsewhere: of its links, and before its ".."."""
    at, rest = Path("/"), [*reversed((Path.cwd() / path).parts)]
    for _ in range(LONGEST_WAY):
        if not rest:
            break
        part = rest.pop()
        if part == "..":
            yield at
            at = at.parent
        elif os.path.islink(at / part):
            yield at
            rest += reversed(Path(os.readlink(at / part)).parts)
        else:
            at /= part


def above(path: Path, flag: str) -> list[Place]:
    """A path's own place, then those of every folder around it, links followed.

    Raises:
        InputError: links that lead in a circle, or a name that no file can have.
    """
    try:
        os.stat(path)
    except ValueError as error:
        raise InputError(f"{flag}: {shown_path(path)} is no path ({error})") from None
    except OSError as error:
        if error.errno in UNUSABLE:
            raise InputError(f"{flag}: {shown_path(path)} cannot be used ({error.strerror})") from None
    real = Path(os.path.realpath(path))
    return [place_of(one) for one in (real, *real.parents)]


def place_of(path: Path) -> Place:
    try:
        found = os.stat(path)
    except OSError:
        return str(path)
    return found.st_dev, found.st_ino
