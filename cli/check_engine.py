"""``enginesmith check-engine``: yes, or why not."""

from __future__ import annotations

import json
from dataclasses import replace

import click

from ..build import gpus, releases
from ..build.check_engine import Machine, reasons_against, this_machine, warnings_about
from ..build.engine_folder import EngineFolder
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
    engine = EngineFolder(engine_dir, "ENGINE_DIR")
    machine = this_machine()
    if gpu is not None:
        machine = replace(machine, gpus=[gpus.find(gpu)] * engine.world_size)
    if release is not None:
        known = releases.find(release)
        machine = Machine(known.version, known.tensorrt, machine.gpus, f"in release {known.version}")
    reasons, warnings = reasons_against(engine, machine), warnings_about(engine, machine)
    if as_json:
        click.echo(json.dumps({"ok": not reasons, "reasons": reasons, "warnings": warnings}))
    elif not reasons:
        click.echo(f"yes: {engine.folder} runs here")
    else:
        click.echo(f"no: {engine.folder} does not run here")
        failed(reasons)
    for warning in () if as_json else warnings:
        click.echo(f"note: {warning}", err=True)
    if reasons:
        raise click.exceptions.Exit(1)
