"""``enginesmith compare``: several quantizations of a model side by side, before any is written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..convert.errors import InputError
from ..convert.files.apart import check_apart
from ..convert.files.bounds import Option
from ..convert.files.staging import whole_file
from ..convert.job.algorithms import NONE, SETTINGS, SWITCHES
from ..convert.job.options import ConvertOptions
from ..convert.sources.documents import BUILT_IN
from ..convert.sources.folder import Source
from ..convert.targets.trtllm.formats import SCHEMES
from ..jobs import compare as run
from . import convert_flags as flags
from . import options as shared
from .display import Bar, adding_most
from .options import Command
from .page.report import cells, page

if TYPE_CHECKING:
    from ..convert.job.compare import Comparison

SHOWN_LAYERS = 3
# Columns where standard output is no terminal.
FILE_WIDTH = 120


def entries(text: str) -> list[str]:
    """Algorithms with their settings, names as TensorRT-LLM spells them; empty ones are refused later."""
    quant = Option(ConvertOptions, "quant")
    parts = [entry.strip().partition(":") for entry in text.split(",")]
    names = [(quant.accepted(name, "--quant") or NONE) if name else "" for name, _, _ in parts]
    return [name + colon + settings for name, (_, colon, settings) in zip(names, parts, strict=True)]


@click.command(cls=Command, short_help="Compare quantizations of a model, without writing any.")
@click.option("--model_dir", required=True, metavar="DIR", help="Hugging Face folder (safetensors).")
@click.option(
    "--quant",
    "--qformat",
    required=True,
    type=entries,
    metavar="A,B,...",
    help=f"QuantAlgo names, separated by commas: none, {', '.join(SCHEMES)}. Settings of one of them follow it after "
    f"colons, as in W4A16_AWQ:rounding=gptq or W4A16_GPTQ:symmetric; there are {', '.join((*SETTINGS, *SWITCHES))}.",
)
@flags.kv_cache
@flags.group_size
@flags.dtype
@shared.exclude
@shared.calib
@flags.calib_size
@flags.calib_seq_len
@shared.text
@shared.chunks
@shared.seq_len
@flags.device
@flags.seed
@click.option("--html", metavar="FILE", help="Also write a page with charts; it needs no other file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and no progress.")
def compare(
    quant: list[str], text: str, chunks: int, seq_len: int, html: str | None, as_json: bool, **given: Any
) -> None:
    """Compare quantizations of a model: size, and accuracy beside the float32 source on held-out text.

    One calibration serves all of them, and no checkpoint is written. Later layers are calibrated behind float
    ones, as with convert --propagate float.
    """
    options = ConvertOptions(output_dir="", propagate="float", **given)
    if html is not None:
        check_page(Path(html))
        check_apart(options.reads() | {"--text": None if text in BUILT_IN else text}, {"--html": html})
    layers = Source(options.model_dir).model.num_hidden_layers
    with Bar("compare", layers, quiet=as_json) as bar:
        comparison = run(options, quant, text, chunks, seq_len, bar.update)
    if html is not None:
        with whole_file(html, "--html") as file:
            file.write_text(page(comparison), encoding="utf-8")
    if as_json:
        from ..convert.job.compare import summary

        click.echo(json.dumps(summary(comparison)))
    else:
        print_comparison(comparison)


def check_page(path: Path) -> None:
    """Refuse a place that cannot or must not be written before any work."""
    if not path.parent.is_dir():
        raise InputError(f"--html: {path.parent} is not a folder")
    if os.path.lexists(path) and not path.is_dir() and path.suffix.lower() != ".html":
        raise InputError(f"--html: {path} exists and its name does not end in .html; choose another")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--html: {path} cannot be written")


def print_comparison(comparison: Comparison) -> None:
    """One row an algorithm, in the order asked for; the layer that adds most to the error comes first."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    first = comparison.results[0].accuracy
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=f"{escape(comparison.model)}: perplexity {first.reference_perplexity:.4f} in float32 "
        f"on {first.tokens:,} held-out tokens",
        caption="adds most: the layers at which the error grows most",
    )
    table.add_column("algorithm", overflow="fold")
    for name in ("MB", "bits", "perplexity", "increase", "mean KL", "top-1", "adds most"):
        table.add_column(name, justify="right", no_wrap=name != "adds most")
    for result in comparison.results:
        layers = " ".join(map(str, adding_most(result.accuracy)[:SHOWN_LAYERS]))
        table.add_row(result.name, *cells(result), layers)
    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)
