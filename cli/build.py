"""``enginesmith build``: trtllm-build's flags in; a plan, or engines, out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..build import engines
from ..build.build_options import BuildOptions, check_build_apart, plan_of
from ..build.checkpoint_folder import CheckpointFolder
from ..build.flags import FLAGS, REFUSED, Flag
from ..build.memory import gibibytes
from ..build.plan import Plan
from ..build.script import write_plan
from ..convert.errors import InputError
from ..convert.files.staging import Staging
from .lines import note
from .options import Command, option_of

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def trtllm_build_flags(function: Callable[..., None]) -> Callable[..., None]:
    """Add trtllm-build's flags; those it has but a plan cannot have are refused with what to do instead."""
    for flag in reversed(FLAGS):
        function = build_flag(flag)(function)
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


def build_flag(flag: Flag) -> Decorator:
    names = [f"--{flag.name}", *(f"--{alias}" for alias in flag.aliases)]
    if flag.kind == "flag":
        return click.option(*names, is_flag=True, default=None, help=flag.help)
    metavar = f"[{'|'.join(flag.kind)}]" if isinstance(flag.kind, tuple) else None
    kind = click.INT if flag.kind is int else click.STRING

    def read(context: click.Context, param: click.Parameter, value: Any) -> Any:
        return None if value is None else flag.accepted(value, names[0])

    return click.option(*names, type=kind, metavar=metavar, callback=read, help=flag.help)


def refusing(name: str, reason: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value is not None:
            raise click.UsageError(f"--{name}: {reason}")

    return callback


@click.command(cls=Command)
@click.option("--checkpoint_dir", required=True, metavar="DIR", help="TensorRT-LLM checkpoint.")
@click.option("--output_dir", required=True, metavar="DIR", help="Engine (or plan) folder to make; must not exist.")
@click.option("--plan_only", is_flag=True, help="Write the plan and a build.sh for NVIDIA's container; build nothing.")
@option_of(
    BuildOptions,
    "release",
    metavar="VERSION",
    help="TensorRT-LLM release.  [default: installed here, or 1.2.1]",
)
@option_of(
    BuildOptions,
    "gpu",
    metavar="NAME",
    help="GPU to build for: A100 (80 GB), A100-40GB, A10, L4, H100, ...; a wrong name lists all.  "
    "[default: this machine's]",
)
@option_of(BuildOptions, "sm", help="GPU by its compute capability (80 for 8.0), if not listed.")
@option_of(BuildOptions, "gpu_memory", metavar="GIB", help="Memory of the GPU.")
@option_of(
    BuildOptions,
    "preset",
    help="Shapes for few sequences at once, or for as many as the GPU holds; flags given besides win.",
)
@option_of(BuildOptions, "max_output_len", help="Longest output; gives max_seq_len with max_input_len.")
@click.option("--chunked_context", is_flag=True, help="Prompts longer than max_num_tokens: serving cuts them.")
@option_of(
    BuildOptions,
    "kv_cache_free_gpu_mem_fraction",
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
    tp_size: int | None,
    pp_size: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Plan the engines of a checkpoint for a GPU and a workload, and build them.

    Takes trtllm-build's own flags. What cannot work is refused before any build. With TensorRT-LLM installed every rank
    is built, one process a GPU; a failed build goes on with the ranks that are missing. Without it, --plan_only writes
    build_config.json and a build.sh that builds in NVIDIA's container.
    """
    words = click.get_current_context().meta["words"]
    flags = {flag.name: given.pop(flag.name) for flag in FLAGS}
    if plan_only and (flags["input_timing_cache"] or flags["output_timing_cache"]):
        raise click.UsageError("--input_timing_cache and --output_timing_cache are not seen by build.sh's container")
    options = BuildOptions(**given, flags={name: flags[name] for name in flags if was_given(name)})
    check_build_apart(checkpoint_dir, output_dir, options)
    checkpoint = CheckpointFolder(checkpoint_dir)
    check_ranks(checkpoint, tp_size, pp_size)
    plan = plan_of(checkpoint, options)
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
        note(warning)
    if plan_only:
        click.echo(f"build it with: {shlex.join(['bash', str(output / 'build.sh')])}")
