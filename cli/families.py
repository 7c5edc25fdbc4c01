"""``enginesmith families``: which models can be converted, and which algorithms their engines compute."""

from __future__ import annotations

import json
from collections import defaultdict

import click

from ..convert.models.family import Family
from ..jobs import families as known
from .options import Command


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def families(as_json: bool) -> None:
    """List the models that can be converted: Hugging Face's classes, TensorRT-LLM releases, algorithms left out."""
    if as_json:
        click.echo(json.dumps([described(family) for family in known()]))
        return
    for family in known():
        click.echo(f"{', '.join(family.architectures)}: TensorRT-LLM {family.since} to 1.2.1")
        for reason, algorithms in left_out(family).items():
            click.echo(f"  not {', '.join(algorithms)}: {reason}")


def described(family: Family) -> dict[str, object]:
    return {"architectures": family.architectures, "since": family.since, "refused": dict(family.refused)}


def left_out(family: Family) -> dict[str, list[str]]:
    """The algorithms that a family's engines do not compute, by reason."""
    found = defaultdict[str, list[str]](list)
    for algorithm, reason in family.refused.items():
        found[reason].append(algorithm)
    return found
