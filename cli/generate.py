"""``enginesmith generate``: hear what a checkpoint says, before any engine is built."""

from __future__ import annotations

import json
import resource
import sys
from typing import TYPE_CHECKING, Any

import click

from ..convert.generate.options import GenerateOptions
from ..jobs import generate as say
from ..jobs import read_prompts
from . import options as shared
from .lines import note
from .options import DEVICES, Command, option_of

if TYPE_CHECKING:
    from ..convert.generate.job import Generated
    from ..convert.generate.text import Written


@click.command(cls=Command, short_help="Continue prompts with a checkpoint, executed without TensorRT.")
@click.argument("checkpoint_dir", metavar="CHECKPOINT_DIR")
@click.option("--prompt", multiple=True, metavar="TEXT", help="What to continue. May be given several times.")
@click.option(
    "--prompts",
    metavar="FILE",
    help="Prompts: a line each, or .json, .jsonl, .parquet records with prompt, or with messages and, if wanted, tools "
    "and chat_template_kwargs. Answers are printed as JSON, one a line.",
)
@click.option("--reference", metavar="HF_DIR", help="The source model: its text in float32 too, and where they part.")
@shared.tokenizer_dir
@click.option("--chat", is_flag=True, help="Put prompts through the tokenizer's chat template.")
@option_of(GenerateOptions, "max_tokens", help="Of each answer.")
@option_of(GenerateOptions, "temperature", help="Of sampling. [default: the most likely token each time]")
@option_of(GenerateOptions, "top_k", help="Sample from so many tokens.")
@option_of(GenerateOptions, "top_p", help="Sample from the fewest tokens that are this probable together.")
@option_of(GenerateOptions, "repetition_penalty", help="Of tokens that are there already.")
@option_of(GenerateOptions, "presence_penalty", help="The same, subtracted once.")
@option_of(GenerateOptions, "frequency_penalty", help="The same, subtracted each time.")
@option_of(GenerateOptions, "seed", help="Of sampling.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text. May be given several times.")
@option_of(GenerateOptions, "batch", help="Prompts that are continued at once.")
@click.option("--stream/--no_stream", default=True, show_default=True, help="Print text as it comes.")
@option_of(GenerateOptions, "device", metavar=DEVICES, help="Where to execute.")
@option_of(GenerateOptions, "reader", help="Whose arithmetic a Hugging Face folder is executed with; see verify.")
@option_of(GenerateOptions, "dtype", help="Of values between operations.")
@click.option("--json", "as_json", is_flag=True, help="Print answers as JSON, one a line.")
def generate(
    checkpoint_dir: str,
    prompt: tuple[str, ...],
    prompts: str | None,
    reference: str | None,
    tokenizer_dir: str | None,
    stream: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Continue prompts with what a checkpoint computes: its integers, its KV cache as it is quantized.

    Any folder that verify reads, all ranks put together (under torchrun: one in each process), or a model in floating
    point. The text goes to standard output; how fast it came, to standard error. On a CPU a checkpoint speaks slowly,
    but with the engine's words.
    """
    if bool(prompt) == (prompts is not None):
        raise click.UsageError("give --prompt TEXT, or --prompts FILE")
    how = GenerateOptions(**options)
    asked = read_prompts(prompts) if prompts is not None else list(prompt)
    as_json = as_json or prompts is not None or len(prompt) > 1
    live = stream and not as_json

    def show(number: int, piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    made = say(checkpoint_dir, asked, how, tokenizer_dir, reference, show if live else None)
    if as_json:
        for number in range(len(made.answers)):
            click.echo(json.dumps(told(made, number), ensure_ascii=False))
    else:
        click.echo("" if live else made.answers[0].text)
        compare(made)
    report(made)


def told(made: Generated, number: int) -> dict[str, Any]:
    """One answer as a JSON object."""

    def plain(answer: Written) -> dict[str, Any]:
        return {
            "text": answer.text,
            "reason": answer.reason,
            "prompt_tokens": answer.prompt_tokens,
            "tokens": len(answer.ids),
        }

    answer = {"number": number} | plain(made.answers[number])
    if made.reference is not None:
        answer |= {"reference": plain(made.reference[number]), "equal_tokens": made.equal_tokens(number)}
    return answer


def compare(made: Generated) -> None:
    """The float source's text below, and where both part."""
    if made.reference is None:
        return
    click.echo(f"\n--- the source, in float32:\n{made.reference[0].text}")
    equal = made.equal_tokens(0)
    same = "both say the same" if equal is None else f"they part after {equal} tokens"
    note(same)


def report(made: Generated) -> None:
    """How much came, and how fast, on standard error."""
    tokens, speed = sum(len(answer.ids) for answer in made.answers), made.speed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    reasons = ", ".join(dict.fromkeys(answer.reason for answer in made.answers))
    note(
        f"{tokens} tokens ({reasons}); first after {speed.first:.2f} s, then {speed.rate:.1f} tokens/s; "
        f"KV cache {speed.cache / 2**20:.1f} MiB, {peak:.2f} GiB at most"
    )
