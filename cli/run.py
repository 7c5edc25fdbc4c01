"""``enginesmith run``: a recipe from model to repository; the exit code is the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..build.recipe import read_recipe
from ..build.steps import DONE, FAILED, NOT_HERE, UNCHANGED, Step
from ..convert.errors import LINE, printable
from ..convert.sources.folder import Source
from ..jobs import run as run_recipe
from .display import Bar
from .options import Command

SAID = {DONE: "done", UNCHANGED: "unchanged", FAILED: "FAILED", NOT_HERE: "not here"}


@click.command(cls=Command)
@click.argument("recipe", metavar="RECIPE.yaml", type=click.Path(exists=True, dir_okay=False))
@click.option("--model_dir", metavar="DIR", help="Instead of the recipe's.")
@click.option("--output_dir", metavar="DIR", help="Instead of the recipe's.")
@click.option("--json", "as_json", is_flag=True, help="Print one result as JSON, and no progress.")
def run(recipe: str, model_dir: str | None, output_dir: str | None, as_json: bool) -> None:
    """Run a release recipe: convert, verify with its gate, plan, build where TensorRT-LLM is installed, triton.

    A step whose inputs did not change and whose output is untouched is skipped; a run that failed or was killed goes on
    where it stopped. Exits 1 if a gate or a build failed.
    """
    what = read_recipe(Path(recipe), model_dir, output_dir)
    named = "--model_dir" if model_dir else f"{Path(recipe).name}: model_dir"
    layers = Source(what.model_dir, named).model.num_hidden_layers
    with Bar("run", layers, quiet=as_json) as bar:

        def on_step(name: str, status: str) -> None:
            if not as_json:
                click.echo(f"{name}: {status}", err=True)

        steps = run_recipe(recipe, model_dir, output_dir, on_step, bar.update)
    ok = all(step.status != FAILED for step in steps)
    if as_json:
        click.echo(json.dumps({"ok": ok, "output_dir": str(what.output_dir), "steps": [vars(step) for step in steps]}))
    else:
        for step in steps:
            click.echo(printable(f"{step.name:<8} {SAID[step.status]:<10} {remark(step)}".rstrip(), 4 * LINE))
    if not ok:
        raise click.exceptions.Exit(1)


def remark(step: Step) -> str:
    """What a person wants to know of a step."""
    result = step.result
    if step.status == NOT_HERE or "command" in result:
        return f"{result['why']}" + (f"; build with: {result['command']}" if "command" in result else "")
    if step.name == "verify":
        accuracy = result.get("accuracy") or {}
        rose = f"perplexity {accuracy['ppl_increase_percent']:+.2f} %" if accuracy else ""
        return "; ".join(filter(None, [rose, *result["failures"]]))
    if step.name == "plan":
        return f"TensorRT-LLM {result['release']} on {result['gpu']}"
    return str(result.get("why") or result.get("quant") or result.get("repository") or "")
