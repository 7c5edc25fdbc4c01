"""Shell patterns of module names, compiled once; lists of them come from files, and are bounded."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable

from ..errors import InputError, shown

# Of patterns with wildcards in one list, and of characters in one; names without wildcards are looked up.
MOST, LONGEST = 10_000, 1_000
WILDCARD = re.compile(r"[*?\[]")

Matches = Callable[[str], object]


def compiled(patterns: Iterable[str], where: str) -> dict[str, Matches]:
    """What each pattern with wildcards matches, in the order given; names without are left out.

    Args:
        where: the file or flag that lists them, for messages.

    Raises:
        InputError: so many, or so long ones, that no model has use for them.
    """
    wild = [pattern for pattern in patterns if WILDCARD.search(pattern)]
    if len(wild) > MOST:
        raise InputError(f"{where}: {len(wild)} patterns with wildcards, of which at most {MOST} are read")
    for pattern in wild:
        if len(pattern) > LONGEST:
            raise InputError(f"{where}: pattern {shown(pattern)} is longer than {LONGEST} characters")
    return {pattern: re.compile(fnmatch.translate(pattern)).match for pattern in wild}
