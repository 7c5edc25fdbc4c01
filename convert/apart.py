"""What a command reads is never written to or removed: checked in one place, before anything is made."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import InputError
from .files import shown_path
from .staging import partial_of

# A place in the file system: (device, inode) of what is there, a path where nothing is yet.
Place = tuple[int, int] | str
UNUSABLE = (errno.ELOOP, errno.ENAMETOOLONG)


def check_apart(reads: Mapping[str, str | Path | None], writes: Mapping[str, str | Path | None]) -> None:
    """Raise InputError if something that is written or removed is, holds or lies in something that is read.

    Links are followed, those in a folder that is read too; where something is made it is made in a hidden folder
    beside, which counts as well. None is a path that was not given.

    Args:
        reads, writes: paths by the option that names them, for messages.
    """
    written = [
        (flag, path, [above(place, flag) for place in (Path(path), partial_of(path))])
        for flag, path in writes.items()
        if path is not None
    ]
    for flag, path, (final, _) in written:
        for other, _, (made, _) in written:
            if flag != other and made[0] in final:
                raise InputError(f"{flag}: {shown_path(path)} lies in what {other} makes; choose another place")
    for read_flag, read in reads.items():
        for source in linked(read, read_flag) if read is not None else ():
            around = above(source, read_flag)
            for flag, path, places in written:
                for place in places:
                    if around[0] in place:
                        raise InputError(
                            f"{flag}: {shown_path(path)} lies in {read_flag} {shown_path(read or '')}, which is never "
                            "written to; choose another place"
                        )
                    if place[0] in around:
                        raise InputError(
                            f"{flag}: {shown_path(path)} would be written over {read_flag} {shown_path(read or '')}; "
                            "choose another place"
                        )


def linked(read: str | Path, flag: str) -> Iterator[Path]:
    """A path that is read, and the links to files in it if it is a folder."""
    yield Path(read)
    try:
        with os.scandir(read) as entries:
            links = [Path(entry.path) for entry in entries if entry.is_symlink()]
    except (OSError, ValueError):
        return  # no folder, or none that can be read: the command says so itself
    yield from (link for link in links if link.is_file())


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
