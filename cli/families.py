"""``enginesmith families``: which models can be converted, and which algorithms their engines compute."""

from __future__ import annotations

import json
from collections import defaultdict

import click

from ..convert.models.families import TESTED
from ..convert.models.family import Family
from ..convert.targets.trtllm.formats import SCHEMES
from ..convert.targets.trtllm.honoured import PLUGINS, QSERVE, left_out
from ..convert.targets.trtllm.releases import LAST
from ..jobs import families as known
from .options import Command

HEAD = ("family", "Hugging Face's classes", "TensorRT-LLM", "`--quant`", "real weights tried")
# Algorithms that are named together.
NAMES = {"the SmoothQuant plugins": PLUGINS, "QServe": QSERVE}


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@click.option("--markdown", is_flag=True, help="Print a table for a README.")
def families(as_json: bool, markdown: bool) -> None:
    """List the models that can be converted: Hugging Face's classes, TensorRT-LLM releases, algorithms left out."""
    if as_json:
        click.echo(json.dumps([described(family) for family in known()]))
    elif markdown:
        click.echo("\n".join(f"| {' | '.join(cells)} |" for cells in table()))
    else:
        for family in known():
            click.echo(
                f"{family.title} ({', '.join(family.architectures)}): TensorRT-LLM {family.since} to {LAST}"
                + (f"; tried with {', '.join(tested(family))}" if tested(family) else "")
            )
            for reason, algorithms in by_reason(family).items():
                click.echo(f"  not {', '.join(algorithms)}: {reason}")


def tested(family: Family) -> tuple[str, ...]:
    """Real weights that were converted and measured."""
    return TESTED.get(family.title, ())


def described(family: Family) -> dict[str, object]:
    return {
        "title": family.title,
        "architectures": family.architectures,
        "since": family.since,
        "tested": tested(family),
        "refused": left_out(family),
    }


def table() -> list[tuple[str, ...]]:
    """The rows of a Markdown table, its head and the line under it first."""
    rows = [HEAD, ("---",) * len(HEAD)]
    for family in known():
        classes = ", ".join(f"`{name}`" for name in family.architectures)
        without = together(list(left_out(family)))
        quant = (
            "none" if set(left_out(family)) == set(SCHEMES) else f"all but {', '.join(without)}" if without else "all"
        )
        rows.append((family.title, classes, f"{family.since} to {LAST}", quant, ", ".join(tested(family)) or "-"))
    return rows


def together(algorithms: list[str]) -> list[str]:
    """Names of algorithms, of several at once where there is one."""
    names = [name for name, group in NAMES.items() if set(group) <= set(algorithms)]
    inside = {algorithm for name in names for algorithm in NAMES[name]}
    return [*names, *(f"`{algorithm}`" for algorithm in algorithms if algorithm not in inside)]


def by_reason(family: Family) -> dict[str, list[str]]:
    """The algorithms that a family's engines do not compute, by reason."""
    found = defaultdict[str, list[str]](list)
    for algorithm, reason in left_out(family).items():
        found[reason].append(algorithm)
    return found
