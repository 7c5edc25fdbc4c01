"""``enginesmith convert``: options in, a checkpoint and a summary out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..convert.errors import InputError
from ..convert.files.bounds import Option
from ..convert.job.options import ConvertOptions
from ..convert.quantize.precision import KV_CACHE
from ..convert.sources.folder import Source
from ..convert.targets.registry import TARGETS
from ..convert.targets.trtllm.formats.smoothquant import algorithm
from ..jobs import convert as run
from . import convert_flags as flags
from . import options as shared
from .display import Bar
from .lines import note
from .options import Command, Value, option_of

if TYPE_CHECKING:
    from ..convert.job.conversion import Converted

SHOWN_SCALES = 4
SHOWN_LINEARS = 6
# Of so many tokens hardly anything is known of an expert's input.
FEW_TOKENS = 64
UPSTREAM_PRECISION = {"int8": "W8A16", "int4": "W4A16", "int4_awq": "W4A16_AWQ", "int4_gptq": "W4A16_GPTQ"}


@click.command(cls=Command, short_help="Convert a Hugging Face folder into a checkpoint.")
@click.option("--model_dir", required=True, metavar="DIR", help="Hugging Face folder (safetensors).")
@click.option(
    "--output_dir",
    required=True,
    metavar="DIR",
    help="Folder to make; must not exist. Several targets get a folder each in it.",
)
@click.option(
    "--target",
    multiple=True,
    default=("trtllm",),
    metavar="|".join(TARGETS),
    help="Who reads it: "
    + "; ".join(f"{name}: {kind.title}" for name, kind in TARGETS.items())
    + ". May be given several times: one pass, a folder each.  [default: trtllm]",
)
@flags.dtype
@option_of(
    ConvertOptions,
    "quant",
    "--qformat",
    metavar="QUANT_ALGO",
    help="TensorRT-LLM's QuantAlgo, or a target's own name: none; "
    + "; ".join(f"{name}: {', '.join(kind.schemes())}" for name, kind in TARGETS.items())
    + ".",
)
@flags.kv_cache
@option_of(ConvertOptions, "tp_size", help="Tensor parallel ranks.")
@option_of(ConvertOptions, "pp_size", help="Pipeline stages.")
@option_of(ConvertOptions, "moe_tp_size", help="Ranks that cut each expert.  [default: tp_size / moe_ep_size]")
@option_of(ConvertOptions, "moe_ep_size", help="Parts that experts are dealt out to.")
@option_of(ConvertOptions, "alpha", metavar="0..1|auto", help="Migration strength; auto searches each group.")
@option_of(ConvertOptions, "act_range", help="How static activation scales find their range.")
@click.option(
    "--fold/--no_fold",
    default=True,
    show_default=True,
    help="Fold factors into v_proj and up_proj where exact; --no_fold writes what upstream's converter writes.",
)
@click.option(
    "--rotate/--no_rotate",
    default=None,
    help="Rotate the residual stream, exact in float.  [default: where a matrix has one weight scale]",
)
@shared.calib
@flags.group_size
@option_of(ConvertOptions, "rounding", help="How weights are rounded; auto is what the scheme is named after.")
@click.option("--symmetric", is_flag=True, help="GPTQ's groups without zero points.")
@option_of(
    ConvertOptions,
    "propagate",
    help="Linears are calibrated behind float or quantized ones; auto: quantized where GPTQ rounds, "
    "but float with --stats and --save_stats.",
)
@option_of(
    ConvertOptions,
    "sm",
    help="GPU generation that W8A16, W4A16 and GPTQ weights are arranged for: 80, 86 and 89 are one arrangement, 90 "
    "(Hopper) is another.",
)
@click.option(
    "--requantize",
    is_flag=True,
    help="A folder that is quantized already (GPTQ, AWQ, compressed-tensors): start from its dequantized weights, "
    "instead of repacking its integers as they are.",
)
@shared.exclude
@click.option(
    "--quant_layer",
    multiple=True,
    metavar="PATTERN=ALGO",
    help="Quantize these linears otherwise than --quant says (MIXED_PRECISION); patterns as for --exclude, a later one "
    "counts more. May be given several times.",
)
@option_of(
    ConvertOptions,
    "float_budget",
    metavar="PERCENT",
    help="Leave the linears in floating point that move hidden states most a weight, up to PERCENT of all weights that "
    "would be quantized.",
)
@flags.calib_size
@flags.calib_seq_len
@click.option(
    "--calib_all_experts",
    is_flag=True,
    help="Every expert sees every calibration token, though it counts only where it is sent: slower, none sees few.",
)
@flags.device
@flags.seed
@click.option(
    "--save_stats", metavar="FILE", help="Also gather every statistic of the calibration text, and save them here."
)
@click.option(
    "--stats",
    metavar="FILE",
    help="Use statistics that --save_stats saved: no forward pass. Give the same --calib, --calib_size, "
    "--calib_seq_len and --seed again; they say which statistics are meant.",
)
@option_of(ConvertOptions, "shard_size", metavar="GB", help="Of one file of tensors, where ranks do not cut them.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and no progress.")
@click.option(
    "--smoothquant",
    "-sq",
    type=Value(Option(ConvertOptions, "alpha")),
    metavar="0..1|auto",
    help="Upstream's spelling: SmoothQuant with this alpha.",
)
@click.option("--per_token", is_flag=True, help="With --smoothquant: activation scales per token.")
@click.option("--per_channel", is_flag=True, help="With --smoothquant: weight scales per output channel.")
@click.option("--use_weight_only", is_flag=True, help="Upstream's spelling, with --weight_only_precision.")
@click.option(
    "--weight_only_precision",
    type=click.Choice(list(UPSTREAM_PRECISION)),
    help="Upstream's spelling: int8 W8A16, int4 W4A16, int4_awq W4A16_AWQ, int4_gptq W4A16_GPTQ.",
)
@click.option("--fp8_kv_cache", is_flag=True, help="Upstream's spelling of --kv_cache FP8.")
@click.option("--int8_kv_cache", is_flag=True, help="Upstream's spelling of --kv_cache INT8.")
def convert(as_json: bool, **given: Any) -> None:
    """Convert a Hugging Face folder into a TensorRT-LLM checkpoint, or into a folder for another runtime.

    Converts the models that "enginesmith families" lists, on a CPU or a GPU, one decoder layer in memory at a time.
    Options may be spelled with - or _.
    """
    options = read_options(given)
    layers = Source(options.model_dir).model.num_hidden_layers
    with Bar("convert", layers, quiet=as_json) as bar:
        done = run(options, bar.update)
    each = done.targets or (done,)
    for text in dict.fromkeys(text for one in each for text in notes(one)):
        note(text)
    if as_json:
        manifests = {one.manifest["target"]: one.manifest for one in each}
        click.echo(json.dumps(manifests if done.targets else done.manifest))
    else:
        for one in each:
            click.echo(summary(one, options))


def read_options(given: dict[str, Any]) -> ConvertOptions:
    """Resolve upstream's spellings into ConvertOptions."""
    source = click.get_current_context().get_parameter_source
    smoothquant, alpha = given.pop("smoothquant"), source("smoothquant") is ParameterSource.COMMANDLINE
    per_token, per_channel = given.pop("per_token"), given.pop("per_channel")
    if not alpha and (per_token or per_channel):
        raise InputError("--per_token and --per_channel go with --smoothquant ALPHA; or use --quant")
    if alpha:
        if given["quant"]:
            raise InputError("--smoothquant and --quant both name a quantization; give one")
        if given["alpha"] is not None:
            raise InputError("--smoothquant and --alpha both give the migration strength; give one")
        given["quant"], given["alpha"] = algorithm(per_token, per_channel), smoothquant
    weight_only, precision = given.pop("use_weight_only"), given.pop("weight_only_precision")
    if precision and not weight_only:
        raise InputError("--weight_only_precision goes with --use_weight_only; or use --quant")
    if weight_only:
        if given["quant"]:
            raise InputError("--use_weight_only and another quantization are both given; give one")
        given["quant"] = UPSTREAM_PRECISION[precision or "int8"]
    for name in KV_CACHE:
        if given.pop(f"{name.lower()}_kv_cache"):
            if given["kv_cache"] not in (None, name):
                raise InputError(f"--{name.lower()}_kv_cache and --kv_cache {given['kv_cache']} contradict each other")
            given["kv_cache"] = name
    return ConvertOptions(**given)


def notes(done: Converted) -> Iterator[str]:
    """What a conversion chose or left out, where one might expect otherwise."""
    if done.manifest["float16_range_checked"] is False:
        yield (
            "nothing was calibrated, so what layers make was not held against float16's range: enginesmith verify "
            "--reference does, and bfloat16 needs none of it"
        )
    if (budget := done.manifest["float_budget"]) is not None:
        names = [name for part in budget["in_float"] for name in part["linears"]]
        weights = sum(part["weights"] for part in budget["in_float"])
        more = (
            f" and {len(names) - SHOWN_LINEARS} more, which enginesmith.json names"
            if len(names) > SHOWN_LINEARS
            else ""
        )
        yield (
            f"in floating point, {100 * weights / budget['weights']:.2f} % of the weights: "
            f"{', '.join(names[:SHOWN_LINEARS]) or 'none, for no part is so small'}{more}"
        )
    again = [index for index, layer in enumerate(done.manifest["layers"]) if "rounded_again" in str(layer)]
    if again:
        yield (
            f"{len(again)} layers hold FP8 matrices with scales of their own that an engine fuses: the largest scale "
            "is kept, and matrices of others are rounded to it once more; enginesmith.json names them"
        )
    few = {
        index: [expert for expert, tokens in enumerate(layer["experts"]["tokens"]) if tokens < FEW_TOKENS]
        for index, layer in enumerate(done.manifest["layers"])
        if "experts" in layer
    }
    shown = [f"{', '.join(map(str, some[:SHOWN_SCALES]))} of layer {index}" for index, some in few.items() if some]
    if shown:
        yield (
            f"experts that saw fewer than {FEW_TOKENS} calibration tokens: {sum(map(len, few.values()))}, as "
            f"{shown[0]}; more text (--calib_size) or --calib_all_experts shows more; enginesmith.json counts them all"
        )
    yield from done.manifest["target_notes"]
    if done.manifest["cache_left_out"]:
        yield "the folder's quantized KV cache is not taken over; --kv_cache FP8 calibrates one"
    if done.manifest["options"]["kv_cache"] == "FP8" and done.manifest["target"] == "trtllm":
        scales = [layer["kv_cache"]["scale"] for layer in done.manifest["layers"]]
        if others := [f"{scale:g} in layer {index}" for index, scale in enumerate(scales) if scale != 1]:
            more = f" and in {len(others) - SHOWN_SCALES} more" if len(others) > SHOWN_SCALES else ""
            yield f"FP8 KV cache: its scale is {', '.join(others[:SHOWN_SCALES])}{more}, as keys or values need; else 1"


def summary(done: Converted, options: ConvertOptions) -> str:
    size = sum((done.folder / name).stat().st_size for name in done.manifest["files"])
    what = done.manifest["quant"] or "no quantization"
    if done.manifest["repacked_from"]:
        what += f" repacked from {done.manifest['repacked_from']}"
    cache = f", {options.kv_cache} KV cache" if options.kv_cache else ""
    calibrated = (done.manifest["calibration"] or {}).get("sequences", options.calib_size)
    if calibrated < options.calib_size:
        cache += f", calibrated on {calibrated} sequences ({options.calib} has no more)"
    ranks = sum(name.endswith(".safetensors") for name in done.manifest["files"])
    files = f"{ranks} {'rank' if done.manifest['target'] == 'trtllm' else 'file'}{'s' if ranks > 1 else ''}"
    return f"{done.folder}: {what}{cache}, {files}, {size / 1e6:,.1f} MB"
