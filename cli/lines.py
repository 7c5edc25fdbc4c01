"""Lines on standard error besides the one of an error; names in them come from files, which may hold anything."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ..convert.errors import printable

SHOWN_PROBLEMS = 20


def failed(problems: Sequence[str]) -> None:
    """What a check found, one line each, of bounded number."""
    for problem in problems[:SHOWN_PROBLEMS]:
        click.echo(printable(f"FAILED {problem}"), err=True)
    if len(problems) > SHOWN_PROBLEMS:
        click.echo(f"FAILED and {len(problems) - SHOWN_PROBLEMS} more", err=True)


def counted(problems: int) -> str:
    """How many problems a check found."""
    return "1 problem" if problems == 1 else f"{problems} problems"


def note(text: str) -> None:
    """What works otherwise than one might expect."""
    click.echo(printable(f"note: {text}"), err=True)
