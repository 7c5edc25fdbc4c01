"""``enginesmith verify``: structure, then accuracy; the exit code is the verdict."""

from __future__ import annotations

import json
import math

import click

from ..convert.execution import Accuracy
from ..convert.joined import Checkpoint
from ..convert.verify import accuracy_failures, measure, structure_problems, summary
from . import options as shared
from .display import Bar, print_accuracy
from .options import Command

SHOWN_PROBLEMS = 20


@click.command(cls=Command, short_help="Check a checkpoint's structure, and its accuracy by executing it.")
@click.argument("checkpoint_dir", metavar="CHECKPOINT_DIR")
@click.option("--reference", metavar="HF_DIR", help="The source model; without it only the structure is checked.")
@shared.text
@shared.chunks
@shared.seq_len
@click.option("--max_ppl_increase", type=float, metavar="PERCENT", help="Fail (exit 1) above this increase.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="Where to execute.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON, and no progress.")
def verify(
    checkpoint_dir: str,
    reference: str | None,
    text: str,
    chunks: int,
    seq_len: int,
    max_ppl_increase: float | None,
    device: str,
    as_json: bool,
) -> None:
    """Check a checkpoint: every tensor that its config implies, then what its integers compute.

    With --reference, tensor and pipeline parallel ranks are put together again and executed with the
    plugins' arithmetic beside the source model in float32.
    """
    if max_ppl_increase is not None and not math.isfinite(max_ppl_increase):
        raise click.UsageError("--max_ppl_increase must be a finite number of percent")
    if max_ppl_increase is not None and reference is None:
        raise click.UsageError("--max_ppl_increase needs --reference HF_DIR to compare with")
    checkpoint = Checkpoint(checkpoint_dir)
    problems = structure_problems(checkpoint)
    accuracy = None
    if reference is not None and not problems:
        with Bar("verify", checkpoint.model.num_hidden_layers, quiet=as_json) as bar:
            accuracy = measure(checkpoint, reference, text, chunks, seq_len, device, bar.update)
    failures = problems + accuracy_failures(accuracy, max_ppl_increase)
    if as_json:
        click.echo(json.dumps(summary(accuracy, problems) | {"ok": not failures, "failures": failures}))
    else:
        report(checkpoint, accuracy, problems)
        for failure in failures[:SHOWN_PROBLEMS]:
            click.echo(f"FAILED {failure}", err=True)
        if len(failures) > SHOWN_PROBLEMS:
            click.echo(f"FAILED and {len(failures) - SHOWN_PROBLEMS} more", err=True)
    if failures:
        raise click.exceptions.Exit(1)


def report(checkpoint: Checkpoint, accuracy: Accuracy | None, problems: list[str]) -> None:
    precision, mapping = checkpoint.precision, checkpoint.mapping
    what = f"{precision.algo or 'no quantization'}, KV cache {precision.kv_cache or checkpoint.dtype}"
    if checkpoint.sliding_window is not None:
        what += f", sliding window {checkpoint.sliding_window}"
    click.echo(f"{checkpoint.folder}: {what}, tp {mapping.tp_size}, pp {mapping.pp_size}")
    click.echo("structure: " + (f"{len(problems)} problems" if problems else "every tensor as config.json implies"))
    if accuracy is not None:
        print_accuracy(accuracy)
    elif not problems:
        click.echo("accuracy: not measured; give --reference HF_DIR")
