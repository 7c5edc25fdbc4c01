"""``enginesmith verify``: structure, then accuracy; the exit code is the verdict."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ..convert.prove.options import VerifyOptions
from ..convert.prove.verify import summary
from ..jobs import verify as check
from . import options as shared
from .display import Bar, print_accuracy
from .lines import counted, failed
from .options import DEVICES, Command, option_of

if TYPE_CHECKING:
    from ..convert.prove.encoders import EncoderAccuracy
    from ..convert.prove.execution import Accuracy
    from ..convert.prove.proven import Proven


@click.command(cls=Command, short_help="Check a checkpoint's structure, and its accuracy by executing it.")
@click.argument("checkpoint_dir", metavar="CHECKPOINT_DIR")
@click.option("--reference", metavar="HF_DIR", help="The source model; without it only the structure is checked.")
@shared.text
@shared.chunks
@shared.seq_len
@option_of(VerifyOptions, "max_ppl_increase", metavar="PERCENT", help="Fail (exit 1) above this increase.")
@option_of(VerifyOptions, "max_distance", metavar="PERCENT", help="Fail if hidden states are further off.")
@option_of(VerifyOptions, "device", metavar=DEVICES, help="Where to execute.")
@option_of(
    VerifyOptions,
    "reader",
    help="Whose arithmetic a Hugging Face folder is executed with: transformers divides the range of an int8 token by "
    "127.5, kernels by 127; edge keeps scales of FP8 and of groups in float16.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON, and no progress.")
def verify(
    checkpoint_dir: str,
    reference: str | None,
    text: str,
    chunks: int,
    seq_len: int,
    max_ppl_increase: float | None,
    max_distance: float | None,
    device: str,
    reader: str,
    as_json: bool,
) -> None:
    """Check a checkpoint: every tensor that its config implies, then what its integers compute.

    With --reference, tensor and pipeline parallel ranks are put together again and executed with the
    plugins' arithmetic beside the source model in float32. Under torchrun each of --nproc_per_node tp_size
    processes executes its own rank.
    """
    for gate, limit in (("--max_ppl_increase", max_ppl_increase), ("--max_distance", max_distance)):
        if limit is not None and reference is None:
            raise click.UsageError(f"{gate} needs --reference HF_DIR to compare with")
    options = VerifyOptions(text, chunks, seq_len, max_ppl_increase, max_distance, device, reader)
    from ..convert.prove.proven import opened

    checkpoint = opened(checkpoint_dir, reader)
    with Bar("verify", checkpoint.model.num_hidden_layers, quiet=as_json or reference is None) as bar:
        found = check(checkpoint_dir, reference, options, bar.update)
    if as_json:
        told = summary(found.accuracy, found.problems)
        click.echo(json.dumps(told | {"ok": found.ok, "failures": found.failures}))
    else:
        report(checkpoint, found.accuracy, found.problems)
        failed(found.failures)
    if not found.ok:
        raise click.exceptions.Exit(1)


def report(checkpoint: Proven, accuracy: Accuracy | EncoderAccuracy | None, problems: list[str]) -> None:
    decodes, dtype = checkpoint.model.family.predicts_tokens, checkpoint.dtype_name
    what = checkpoint.quant or "no quantization"
    if decodes:
        what += f", KV cache {checkpoint.kv_cache or dtype}"
    if checkpoint.sliding_window is not None:
        what += f", sliding window {checkpoint.sliding_window}"
    click.echo(f"{checkpoint.folder}: {what}{checkpoint.cut}")
    click.echo("structure: " + (counted(len(problems)) if problems else "every tensor as config.json implies"))
    if accuracy is not None:
        print_accuracy(accuracy)
        few, many = accuracy.few_tokens_error, accuracy.many_tokens_error
        if decodes and few is not None and many is not None and accuracy.beyond is None:
            click.echo(
                f"decoding: weight-only kernels for 1 to 4 tokens sum in {dtype}: "
                f"outputs are {100 * few:.2g} % off the exact product, {100 * many:.2g} % with more tokens"
            )
    elif not problems:
        click.echo("accuracy: not measured; give --reference HF_DIR")
