"""``enginesmith evaluate``: lm-evaluation-harness's tasks, answered by a checkpoint before any engine is built."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..convert.errors import InputError, printable
from ..convert.evaluate.options import EvaluateOptions
from ..convert.files.apart import check_apart
from ..convert.files.staging import whole_file
from ..jobs import evaluate as ask
from . import options as shared
from .display import PLAIN_INTERVAL
from .lines import failed
from .options import DEVICES, Command, option_of

if TYPE_CHECKING:
    from ..convert.evaluate.figures import Figure
    from ..convert.evaluate.job import Evaluated


@click.command(cls=Command, short_help="Have a checkpoint answer lm-evaluation-harness's tasks, and its source beside.")
@click.argument("checkpoint_dir", metavar="CHECKPOINT_DIR")
@click.option(
    "--tasks",
    multiple=True,
    required=True,
    metavar="A,B,...",
    help="Tasks, groups and tags, or patterns of their names. May be given several times.",
)
@option_of(EvaluateOptions, "include_path", metavar="DIR", help="Task files of your own; data files lie there too.")
@click.option("--reference", metavar="HF_DIR", help="The source model, which answers too, in float32.")
@option_of(
    EvaluateOptions,
    "max_drop",
    metavar="POINTS",
    help="Fail (exit 1) where a task's main figure is worse than the source's by more percentage points; of "
    "perplexities and the like, by more percent.",
)
@option_of(EvaluateOptions, "num_fewshot", help="Examples before each question. [default: the task's]")
@option_of(EvaluateOptions, "limit", help="Documents of each task: so many, or below 1 this share of them.")
@option_of(EvaluateOptions, "batch_size", metavar="N|auto", help="Sequences that are computed at once.")
@option_of(EvaluateOptions, "max_length", help="Tokens of a sequence. [default: the model's positions]")
@click.option("--add_bos_token/--no_add_bos_token", default=None, help="Before every text. [default: the tokenizer's]")
@click.option("--apply_chat_template", is_flag=True, help="Put questions through the tokenizer's chat template.")
@shared.tokenizer_dir
@option_of(EvaluateOptions, "seed", help="Of few-shot examples and sampling. [default: the harness's own]")
@option_of(EvaluateOptions, "device", metavar=DEVICES, help="Where to execute.")
@option_of(EvaluateOptions, "reader", help="Whose arithmetic a Hugging Face folder is executed with; see verify.")
@option_of(EvaluateOptions, "dtype", help="Of values between operations.")
@click.option("--allow_downloads", is_flag=True, help="Fetch data sets from the Hugging Face Hub.")
@click.option(
    "--allow_task_code", is_flag=True, help="Run the Python that files of --include_path name, and tasks that run code."
)
@click.option("--output", metavar="FILE", help="Also write the figures, and every question with its answers, as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, and no progress.")
def evaluate(
    checkpoint_dir: str,
    reference: str | None,
    tokenizer_dir: str | None,
    output: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Have a checkpoint answer tasks of lm-evaluation-harness: its integers, its KV cache as it is quantized.

    Any folder that generate reads. With --reference the float source answers the same questions, each figure stands
    beside its own, and --max_drop is a gate. Nothing is downloaded, and no task file's code is run, unless asked for.
    """
    how = EvaluateOptions(**options)
    reads = {"CHECKPOINT_DIR": checkpoint_dir, "--reference": reference, "--tokenizer_dir": tokenizer_dir}
    check_apart(reads | {"--include_path": how.include_path}, {"--output": output})
    if output is not None and os.path.lexists(output) and (Path(output).is_dir() or not output.endswith(".json")):
        raise InputError(f"--output: {output} exists and is no .json file; choose another name")
    with nullcontext() if output is None else whole_file(output, "--output") as file:
        made = ask(checkpoint_dir, how, tokenizer_dir, reference, None if as_json else Progress().show)
        if file is not None:
            write(file, made)
    if as_json:
        click.echo(json.dumps(made.summary()))
    else:
        print_figures(made.figures)
        failed(made.failures)
    if not made.ok:
        raise click.exceptions.Exit(1)


class Progress:
    """A line on standard error now and then."""

    def __init__(self) -> None:
        self.printed = time.monotonic()

    def show(self, who: str, what: str, done: int, total: int) -> None:
        if time.monotonic() - self.printed >= PLAIN_INTERVAL:
            self.printed = time.monotonic()
            print(f"evaluate: {who}: {what} {done}/{total}", file=sys.stderr, flush=True)


def write(file: Path, made: Evaluated) -> None:
    """Figures and samples as one JSON object."""
    samples = {"samples": made.samples, "reference_samples": made.reference_samples}
    file.write_text(json.dumps(made.summary() | samples, ensure_ascii=False, default=str), encoding="utf-8")


def print_figures(figures: list[Figure]) -> None:
    """One row a metric; the main one of each task first said by its name."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table, beside = Table(box=SIMPLE_HEAD, pad_edge=False), any(one.reference is not None for one in figures)
    table.add_column("task", overflow="fold")
    table.add_column("metric", overflow="fold")
    for name in ("documents", *(("source (float32)", "checkpoint", "change") if beside else ("checkpoint",))):
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    for one in figures:
        what = one.metric if one.filter == "none" else f"{one.metric} ({one.filter})"
        cells = [valued(one.value, one.error)]
        if one.reference is not None and one.change is not None:
            unit = "points" if one.in_points else "%"
            cells = [valued(one.reference, one.reference_error), *cells, f"{one.change:+.2f} {unit}"]
        table.add_row(
            "" if one.task == last else escape(printable(one.task)),
            escape(printable(what)) + (" *" if one.main else ""),
            "" if one.documents is None else f"{one.documents:,}",
            *cells,
        )
        last = one.task
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    click.echo("* the main figure of its task, which --max_drop looks at")


def valued(value: float, error: float | None) -> str:
    """A figure with its standard error."""
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")
