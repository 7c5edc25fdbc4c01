"""The one exception that means: the input is wrong, and here is what would work."""

from __future__ import annotations


class InputError(ValueError):
    """Bad usage or bad input; one line that names the file, tensor or flag (exit code 2)."""
