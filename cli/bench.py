"""``enginesmith bench``: how fast a checkpoint is executed here."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from ..convert.generate.options import BenchOptions
from ..jobs import bench as measure
from .options import DEVICES, Command, option_of


@click.command(cls=Command, short_help="Time how a checkpoint reads prompts and continues them.")
@click.argument("checkpoint_dir", metavar="CHECKPOINT_DIR")
@click.option("--reference", metavar="HF_DIR", help="The source model, which transformers executes beside.")
@option_of(BenchOptions, "prompt_tokens", help="Of each sequence.")
@option_of(BenchOptions, "new_tokens", help="That continue each.")
@option_of(BenchOptions, "batch", help="Sequences at once.")
@option_of(BenchOptions, "repeats", help="Of everything; the median counts.")
@option_of(BenchOptions, "device", metavar=DEVICES, help="Where to execute.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench(checkpoint_dir: str, reference: str | None, as_json: bool, **options: Any) -> None:
    """Time this project's own runtime: tokens a second of prompts and of answers, and the GPU's memory.

    Prompts are random. It is no measure of an engine; with --reference transformers executes the float source in the
    checkpoint's dtype, in the same process. Under torchrun each process executes its own tensor parallel rank.
    """
    made = measure(checkpoint_dir, BenchOptions(**options), reference)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in made]))
        return
    width = max(len(one.name) for one in made)
    click.echo(f"{'':{width}}  load, s  prompt, tokens/s  answer, tokens/s  GPU, GiB")
    for one in made:
        memory = "" if one.memory is None else f"{one.memory / 2**30:.2f}"
        click.echo(f"{one.name:{width}}  {one.load:7.1f}  {one.prefill:16,.0f}  {one.decode:16,.1f}  {memory:>8}")
