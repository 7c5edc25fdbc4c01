"""``enginesmith check``: which runtimes read a folder right, which refuse it, and which would misread it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from ..convert.errors import printable
from ..convert.readers.check import RUNTIMES, Reading
from ..convert.readers.findings import MISREADS, READS, REFUSES, UNKNOWN
from ..jobs import check as judge
from .options import Command

SAID = {
    READS: "reads it, but note:",
    UNKNOWN: "was not tried with it:",
    REFUSES: "refuses it:",
    MISREADS: "misreads it:",
}


@click.command(cls=Command, short_help="Say which runtimes read a folder right, refuse it, or misread it.")
@click.argument("folder", metavar="FOLDER")
@click.option(
    "--for",
    "runtimes",
    multiple=True,
    type=click.Choice(list(RUNTIMES)),
    help="Ask for this runtime only, and fail (exit 1) unless it reads the folder right. May be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON.")
def check(folder: str, runtimes: tuple[str, ...], as_json: bool) -> None:
    """Say of a folder, whoever made it, which runtimes read it right, which refuse it with an error, and which would
    misread it without one; exit 1 where none reads it.

    Configurations, the forms of tensors and small tensors are read: scales and zero points. "unknown" is what nobody
    has tried.
    """
    found = judge(folder, runtimes)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        click.echo(f"{Path(folder)}: {printable(found.what)}\n")
        for one in found.readings:
            click.echo(f"  {one.title:<20} {one.verdict}")
        for one in found.readings:
            explain(one)
    if not found.ok:
        raise click.exceptions.Exit(1)


def explain(one: Reading) -> None:
    """Why a runtime does not read the folder right, or what is worth knowing where it does."""
    lines = one.reasons + one.notes
    if lines:
        click.echo(f"\n{one.title} {SAID[one.verdict]}")
    for line in lines:
        click.echo(f"  {line}")
