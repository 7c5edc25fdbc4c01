"""What the C library does with memory that is freed: keep it for what comes next."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# glibc's names of what can be set, and bytes: blocks up to the first are kept, up to the second in all.
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
KEPT_BLOCK, KEPT = 1 << 25, 1 << 30


def keep_freed_memory() -> None:
    """A layer's work takes and frees blocks of some megabytes thousands of times; pages that go back to the system each
    time must be cleared each time. Other C libraries are left as they are."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_THRESHOLD, KEPT_BLOCK)
        mallopt(TRIM_THRESHOLD, KEPT)
