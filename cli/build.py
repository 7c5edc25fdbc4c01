"""``enginesmith build``: trtllm-build's flags in; a plan, or engines, out."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..build import engines, gpus, releases
from ..build.checkpoint_folder import CheckpointFolder
from ..build.flags import FLAGS, LARGEST, REFUSED, Flag
from ..build.memory import gibibytes
from ..build.plan import Plan, Wishes, make_plan
from ..build.script import write_plan
from ..convert.errors import InputError
from ..convert.staging import Staging
from .options import Command, interrupt

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def trtllm_build_flags(function: Callable[..., None]) -> Callable[..., None]:
    """Add trtllm-build's flags; those it has but a plan cannot have are refused with what to do instead."""
    for flag in reversed(FLAGS):
        function = option_of(flag)(function)
    for name, reason in REFUSED.items():
        refused = click.option(
            f"--{name}",
            hidden=True,
            expose_value=False,
            is_eager=True,
            is_flag=False,
            flag_value="",
            callback=refusing(name, reason),
        )
        function = refused(function)
    return function


def option_of(flag: Flag) -> Decorator:
    names = [f"--{flag.name}", *(f"--{alias}" for alias in flag.aliases)]
    settings: dict[str, Any] = {"help": flag.help, "callback": lambda ctx, param, word: flag.value(word)}
    if flag.kind == "flag":
        return click.option(*names, is_flag=True, default=None, help=flag.help)
    if flag.kind is int:
        settings["type"] = click.IntRange(flag.least, LARGEST)
    elif isinstance(flag.kind, tuple):
        settings["type"] = click.Choice(flag.kind, case_sensitive=False)
    return click.option(*names, **settings)


def refusing(name: str, reason: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value is not None:
            raise click.UsageError(f"--{name}: {reason}")

    return callback


@click.command(cls=Command)
@click.option("--checkpoint_dir", required=True, metavar="DIR", help="TensorRT-LLM checkpoint.")
@click.option("--output_dir", required=True, metavar="DIR", help="Engine (or plan) folder to make; must not exist.")
@click.option("--plan_only", is_flag=True, help="Write the plan and a build.sh for NVIDIA's container; build nothing.")
@click.option("--release", metavar="VERSION", help="TensorRT-LLM release.  [default: installed here, or 1.2.1]")
@click.option(
    "--gpu",
    metavar="NAME",
    help="GPU to build for: A100 (80 GB), A100-40GB, A10, L4, H100, ...; a wrong name lists all.  "
    "[default: this machine's]",
)
@click.option("--sm", type=click.IntRange(50, 200), help="GPU by its compute capability (80 for 8.0), if not listed.")
@click.option("--gpu_memory", type=click.FloatRange(1, 2048), metavar="GIB", help="Memory of the GPU.")
@click.option(
    "--preset",
    type=click.Choice(["latency", "throughput"]),
    help="Shapes for few sequences at once, or for as many as the GPU holds; flags given besides win.",
)
@click.option("--max_output_len", type=click.IntRange(1), help="Longest output; gives max_seq_len with max_input_len.")
@click.option("--chunked_context", is_flag=True, help="Prompts longer than max_num_tokens: serving cuts them.")
@click.option(
    "--kv_cache_free_gpu_mem_fraction",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.9,
    show_default=True,
    help="Share of the free memory that serving gives to the KV cache.",
)
@click.option("--tp_size", type=click.IntRange(1), help="Must be the checkpoint's.")
@click.option("--pp_size", type=click.IntRange(1), help="Must be the checkpoint's.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@trtllm_build_flags
def build(
    checkpoint_dir: str,
    output_dir: str,
    plan_only: bool,
    release: str | None,
    gpu: str | None,
    sm: int | None,
    gpu_memory: float | None,
    preset: str | None,
    max_output_len: int | None,
    chunked_context: bool,
    kv_cache_free_gpu_mem_fraction: float,
    tp_size: int | None,
    pp_size: int | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Plan the engines of a checkpoint for a GPU and a workload, and build them.

    Takes trtllm-build's own flags. What cannot work is refused before any build. With TensorRT-LLM installed every rank
    is built, one process a GPU; a failed build goes on with the ranks that are missing. Without it, --plan_only writes
    build_config.json and a build.sh that builds in NVIDIA's container.
    """
    words = click.get_current_context().meta["words"]
    signal.signal(signal.SIGTERM, interrupt)
    if plan_only and (flags["input_timing_cache"] or flags["output_timing_cache"]):
        raise click.UsageError("--input_timing_cache and --output_timing_cache are not seen by build.sh's container")
    checkpoint = CheckpointFolder(checkpoint_dir)
    check_ranks(checkpoint, tp_size, pp_size)
    given = {name: flags[name] for name in flags if was_given(name)}
    wishes = Wishes(given, preset, max_output_len, chunked_context, kv_cache_free_gpu_mem_fraction)
    target = releases.find(release or engines.installed_release() or releases.LATEST)
    plan = make_plan(checkpoint, target, gpus.target(gpu, sm, gpu_memory), wishes)
    if plan_only:
        with Staging(output_dir) as staging:
            write_plan(plan, staging.folder, staging.final)
            staging.commit()
    elif engines.installed_release() is None:
        command = shlex.join(["enginesmith", "build", *words, "--plan_only"])
        script = shlex.join(["bash", str(Path(output_dir) / "build.sh")])
        raise InputError(
            f"TensorRT-LLM is not installed here; on a machine with {plan.gpu.name} and docker: {command} && {script}"
        )
    elif not engines.build(plan, Path(output_dir)):
        click.echo("FAILED the build; finished ranks are kept, the same command goes on", err=True)
        raise click.exceptions.Exit(1)
    if as_json:
        click.echo(json.dumps(plan.as_json()))
    else:
        report(plan, Path(output_dir), plan_only)


def was_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def check_ranks(checkpoint: CheckpointFolder, tp_size: int | None, pp_size: int | None) -> None:
    """Raise InputError unless the mapping asked for is the checkpoint's."""
    tp, pp = checkpoint.mapping.tp_size, checkpoint.mapping.pp_size
    if (tp_size or tp) != tp or (pp_size or pp) != pp:
        raise InputError(
            f"--tp_size {tp_size or tp} --pp_size {pp_size or pp}: the checkpoint has tp_size {tp}, pp_size {pp}; "
            "convert again to change them"
        )


def report(plan: Plan, output: Path, plan_only: bool) -> None:
    """The plan as a person reads it."""
    config = plan.build_config
    checkpoint = plan.checkpoint
    click.echo(
        f"{output}: {'plan' if plan_only else 'engines'} of {checkpoint.algorithm or 'no quantization'}, KV cache "
        f"{checkpoint.kv_cache or checkpoint.dtype}, TensorRT-LLM {plan.release.version}, {plan.gpu.name} "
        f"(SM {plan.gpu.sm}), tp {checkpoint.mapping.tp_size}, pp {checkpoint.mapping.pp_size}"
    )
    shapes = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens", "max_beam_width")
    click.echo("shapes: " + ", ".join(f"{name} {config[name]}" for name in shapes))
    click.echo("plugins: " + (", ".join(plan.plugins) or "none for quantization"))
    for rank in plan.memory:
        cache = (
            f"{plan.wishes.fraction:g} of the rest: KV cache {gibibytes(max(rank.available, 0))}, {rank.sequences} "
            "sequences of full length"
        )
        click.echo(
            f"rank {rank.rank} of {gibibytes(rank.gpu)}: weights {gibibytes(rank.weights)}, activations about "
            f"{gibibytes(rank.activations)}, reserve {gibibytes(rank.reserve)}; "
            + ("no KV cache" if config["kv_cache_type"] == "DISABLED" else cache)
        )
    for warning in plan.warnings:
        click.echo(f"note: {warning}", err=True)
    if plan_only:
        click.echo(f"build it with: {shlex.join(['bash', str(output / 'build.sh')])}")
