"""Options as users of TensorRT-LLM's scripts type them: words joined by - or _ alike."""

from __future__ import annotations

import difflib
from types import FrameType

import click

from ..convert.scheme import GROUP_SIZES, SCHEMES

SOURCES = (
    "a UTF-8 file, a .json, .jsonl or .parquet file or a folder of them with text, prompt and completion, or messages, "
    "or a safetensors file with input_ids"
)
# Options that more than one command has.
text = click.option(
    "--text",
    default="pydoc-heldout",
    show_default=True,
    metavar="FILE|NAME",
    help=f"Held-out text: pydoc-heldout, {SOURCES}.",
)
chunks = click.option(
    "--chunks", type=click.IntRange(1), default=20, show_default=True, help="Sequences to measure on."
)
seq_len = click.option("--seq_len", type=click.IntRange(2), default=512, show_default=True, help="Tokens in each.")


def algorithm(word: str) -> str:
    """A QuantAlgo name or "none", in any case."""
    names = ("none", *SCHEMES)
    match = next((name for name in names if name.upper() == word.upper()), None)
    if match is None:
        close = difflib.get_close_matches(word.upper(), names, 1)
        hint = f"did you mean {close[0]}?" if close else f"use one of: {', '.join(names)}"
        raise click.BadParameter(f"{word!r} is not supported; {hint}")
    return match


def channels(word: str) -> int:
    """A group size."""
    sizes = [str(size) for size in GROUP_SIZES]
    if word not in sizes:
        raise click.BadParameter(f"{word!r}: TensorRT-LLM's kernels take groups of {' or '.join(sizes)}")
    return int(word)


group_size = click.option(
    "--group_size",
    type=channels,
    metavar="|".join(str(size) for size in GROUP_SIZES),
    help="Input channels that share a scale, for AWQ and GPTQ; 64 where 128 does not divide the model's sizes.  "
    "[default: 128, or what a quantized folder has]",
)
dtype = click.option(
    "--dtype",
    type=click.Choice(["auto", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="The engine's dtype; auto is the source's, float32 becoming float16.",
)
calib_size = click.option(
    "--calib_size", type=click.IntRange(1), default=64, show_default=True, help="Calibration sequences."
)
seed = click.option("--seed", type=int, default=0, show_default=True, help="Draws the tokens that searches look at.")
exclude = click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave these linears in floating point: a Hugging Face or TensorRT-LLM name of a linear or of a module around "
    "it, * standing for any characters (*.down_proj, model.layers.0). May be given several times.",
)
calib = click.option(
    "--calib",
    "--calib_dataset",
    default="pydoc",
    show_default=True,
    metavar="FILE|NAME",
    help=f"Calibration text: pydoc, {SOURCES}.",
)


class Command(click.Command):
    """A command whose options may be spelled with - or _."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["words"] = [underscored(arg) for arg in args]
        return super().parse_args(ctx, list(ctx.meta["words"]))


def underscored(arg: str) -> str:
    """--model-dir=a-b -> --model_dir=a-b; anything that is no long option stays as it is."""
    if not arg.startswith("--") or arg == "--":
        return arg
    name, equals, value = arg.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def interrupt(signal_number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a command the way Ctrl-C does, leaving nothing half-written."""
    raise KeyboardInterrupt
