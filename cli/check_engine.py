"""``enginesmith check-engine``: yes, or why not."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..jobs import check_engine as check
from .lines import failed
from .options import Command


@click.command(cls=Command)
@click.argument("engine_dir", metavar="ENGINE_DIR")
@click.option("--gpu", metavar="NAME", help="Ask for machines with this GPU instead of this one.")
@click.option("--release", metavar="VERSION", help="With this TensorRT-LLM instead of the one installed here.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def check_engine(engine_dir: str, gpu: str | None, release: str | None, as_json: bool) -> None:
    """Say whether an engine can run on this machine, or why not (exit 1).

    TensorRT-LLM, TensorRT and the GPU generation must be those it was built with, its files whole, and there must be a
    GPU for every rank. Another GPU model of the same generation is worth a note, no more.
    """
    found = check(engine_dir, gpu, release)
    if as_json:
        click.echo(json.dumps({"ok": found.ok, "reasons": found.reasons, "warnings": found.warnings}))
    elif found.ok:
        click.echo(f"yes: {Path(engine_dir)} runs here")
    else:
        click.echo(f"no: {Path(engine_dir)} does not run here")
        failed(found.reasons)
    for warning in () if as_json else found.warnings:
        click.echo(f"note: {warning}", err=True)
    if not found.ok:
        raise click.exceptions.Exit(1)
