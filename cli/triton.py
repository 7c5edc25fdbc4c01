"""``enginesmith triton``: a model repository for Triton Inference Server, made or checked."""

from __future__ import annotations

import json
from shlex import quote
from typing import Any

import click
from click.core import ParameterSource

from ..build.triton.check import Findings, examine
from ..build.triton.generate import prepare, start_command, write_repository
from ..build.triton.options import POLICIES, TritonOptions
from .lines import counted, failed
from .options import Command, option_of


@click.command(cls=Command, short_help="Make a Triton model repository for an engine, or check any.")
@click.option("--engine_dir", metavar="DIR", help="Engine folder: config.json and rankN.engine.")
@click.option(
    "--preview", metavar="CHECKPOINT", help="Serve this checkpoint, executed without TensorRT, in its engine's place."
)
@option_of(TritonOptions, "release", metavar="VERSION", help="With --preview: will build the engine. [default: latest]")
@click.option("--tokenizer_dir", metavar="DIR", help="Hugging Face folder with the tokenizer.")
@click.option("--output_dir", metavar="DIR", help="The repository to make; must not exist.")
@click.option("--check", "checked", metavar="DIR", help="Check this repository, whoever made it, and make nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--decoupled", is_flag=True, help="Allow several responses to a request; streaming needs it.")
@click.option("--bls/--no_bls", default=None, help="With tensorrt_llm_bls, which streams text. [default: if decoupled]")
@click.option("--chat", is_flag=True, help="Put prompts through the tokenizer's chat template.")
@option_of(TritonOptions, "max_batch_size", help="Rows of a request. [default: engine's, at most 64]")
@option_of(TritonOptions, "max_queue_delay", help="Microseconds.")
@option_of(
    TritonOptions,
    "kv_cache_free_gpu_mem_fraction",
    help="Of the GPU memory that the engine leaves free; less when the GPU is shared. [default: as planned, else 0.9]",
)
@option_of(TritonOptions, "max_tokens_in_paged_kv_cache", help="Tokens. [default: as memory allows]")
@option_of(
    TritonOptions,
    "max_attention_window_size",
    help="Tokens that a token attends to. [default: the model's sliding window, as planned, else all]",
)
@click.option("--enable_kv_cache_reuse", is_flag=True, help="Reuse the KV cache of equal beginnings.")
@click.option(
    "--enable_chunked_context/--disable_chunked_context",
    default=None,
    help="Read long prompts in pieces. [default: as planned, else not]",
)
@option_of(
    TritonOptions,
    "batch_scheduler_policy",
    metavar="POLICY",
    help=f"{' or '.join(POLICIES)}.",
)
@click.option(
    "--exclude_input_in_output/--include_input_in_output", default=True, show_default=True, help="Answers only."
)
@click.option("--add_special_tokens/--no_add_special_tokens", default=True, show_default=True, help="Around prompts.")
@click.option("--skip_special_tokens/--no_skip_special_tokens", default=True, show_default=True, help="In answers.")
@option_of(TritonOptions, "preprocessing_instances", help="Processes. [default: at most 4]")
@option_of(TritonOptions, "postprocessing_instances", help="Processes. [default: at most 4]")
@option_of(TritonOptions, "bls_instances", help="Requests served at once by BLS. [default: at most 8]")
@click.option("--self_contained", is_flag=True, help="Copy engine and tokenizer into the repository.")
@option_of(TritonOptions, "mount_dir", help="Where the server finds a self-contained one.")
def triton(checked: str | None, as_json: bool, **options: Any) -> None:
    """Make a model repository for an engine: text in, text out, ready for tritonserver.

    With --check, examine one instead: configurations as tritonserver and TensorRT-LLM's backend read them, connections,
    engine, tokenizer. Exit code 1 if anything is wrong.
    """
    if checked is not None:
        source = click.get_current_context().get_parameter_source
        given = [name for name in options if source(name) is ParameterSource.COMMANDLINE and name != "mount_dir"]
        if given:
            raise click.UsageError(f"--check makes nothing; leave --{given[0]} out")
        verdict(checked, examine(checked, options["mount_dir"]), as_json)
        return
    if (checkpoint := options.pop("preview")) is not None:
        if options["engine_dir"] is not None:
            raise click.UsageError("--preview serves a checkpoint, --engine_dir an engine; give one of them")
        options |= {"engine_dir": checkpoint, "preview": True}
    if missing := [name for name in ("engine_dir", "tokenizer_dir", "output_dir") if options[name] is None]:
        raise click.UsageError(f"--{missing[0]} DIR is needed, or --check DIR")
    wanted = TritonOptions(**options)
    plan = prepare(wanted)
    repository = write_repository(plan)
    for note in plan.special.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(json.dumps({"repository": str(repository)}))
    else:
        click.echo(f"{repository}: start it with\n  {start_command(wanted)}")
        click.echo(f"and ask it in another terminal with\n  python {quote(str(repository / 'try.py'))}")


def verdict(folder: str, found: Findings, as_json: bool) -> None:
    """Print what was found, and what was not looked at; exit 1 if anything is wrong."""
    problems = found.problems
    if as_json:
        answer = {"repository": folder, "ok": not problems, "problems": problems, "not_checked": found.not_checked}
        click.echo(json.dumps(answer))
    else:
        click.echo(f"{folder}: " + (counted(len(problems)) if problems else "no problem found"))
        for line in found.not_checked:
            click.echo(f"not checked: {line}")
        failed(problems)
    if problems:
        raise click.exceptions.Exit(1)
