"""The command as a user types it, in this process."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock

import pytest

from enginesmith.cli.main import main


@dataclass
class Done:
    stdout: str
    stderr: str


def run(*words: object, expect: int = 0) -> Done:
    """Type ``enginesmith`` and these words, in this process, which has torch loaded already."""
    out, err = io.StringIO(), io.StringIO()
    typed = mock.patch.object(sys, "argv", ["enginesmith", *map(str, words)])
    with typed, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == expect, err.getvalue()
    if expect == 2:
        assert err.getvalue().startswith("enginesmith: ")
        assert len(err.getvalue().strip().splitlines()) == 1
    return Done(out.getvalue(), err.getvalue())
