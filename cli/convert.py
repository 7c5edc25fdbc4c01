"""``enginesmith convert``: options in, a checkpoint and a summary out."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from typing import Any

import click

from ..convert.convert_options import ConvertOptions
from ..convert.converter import Converted
from ..convert.converter import convert as run
from ..convert.errors import InputError
from ..convert.ranges import METHODS
from ..convert.scheme import GENERATIONS, KV_CACHE, SCHEMES, smoothquant_algo
from ..convert.source import Source
from . import options as shared
from .display import Bar
from .options import Command, interrupt

SHOWN_SCALES = 4
WEIGHT_ONLY_PRECISION = {"int8": "W8A16", "int4": "W4A16", "int4_awq": "W4A16_AWQ", "int4_gptq": "W4A16_GPTQ"}


def alpha_value(value: str) -> float | str:
    """A number between 0 and 1, or "auto"."""
    if value == "auto":
        return "auto"
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise click.BadParameter(f"{value!r} is neither auto nor a number between 0 and 1")
    return number


@click.command(cls=Command, short_help="Convert a Hugging Face folder into a TensorRT-LLM checkpoint.")
@click.option("--model_dir", required=True, metavar="DIR", help="Hugging Face folder (safetensors).")
@click.option("--output_dir", required=True, metavar="DIR", help="Checkpoint folder to make; must not exist.")
@shared.dtype
@click.option(
    "--quant",
    "--qformat",
    type=shared.algorithm,
    default="none",
    show_default=True,
    metavar="QUANT_ALGO",
    help=f"TensorRT-LLM's QuantAlgo: none, {', '.join(SCHEMES)}.",
)
@click.option(
    "--kv_cache",
    type=click.Choice(["none", *KV_CACHE]),
    default="none",
    show_default=True,
    help="Quantize the KV cache.",
)
@click.option("--tp_size", type=click.IntRange(1), default=1, show_default=True, help="Tensor parallel ranks.")
@click.option("--pp_size", type=click.IntRange(1), default=1, show_default=True, help="Pipeline stages.")
@click.option(
    "--alpha",
    type=alpha_value,
    metavar="0..1|auto",
    default="auto",
    show_default=True,
    help="Migration strength; auto searches each group.",
)
@click.option(
    "--act_range",
    type=click.Choice(["auto", *METHODS]),
    default="auto",
    show_default=True,
    help="How static activation scales find their range.",
)
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
@shared.group_size
@click.option(
    "--rounding",
    type=click.Choice(["auto", "nearest", "gptq"]),
    default="auto",
    show_default=True,
    help="How weights are rounded; auto is what the scheme is named after.",
)
@click.option("--symmetric", is_flag=True, help="GPTQ's groups without zero points.")
@click.option(
    "--propagate",
    type=click.Choice(["auto", "float", "quantized"]),
    default="auto",
    show_default=True,
    help="Later layers are calibrated behind float or quantized ones; auto: quantized where GPTQ rounds, "
    "but float with --stats and --save_stats.",
)
@click.option(
    "--sm",
    type=click.Choice([str(sm) for sm in GENERATIONS]),
    default="80",
    show_default=True,
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
@shared.calib_size
@click.option(
    "--calib_seq_len",
    "--calib_max_seq_length",
    type=click.IntRange(2),
    default=512,
    show_default=True,
    help="Tokens in each.",
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="Where to calibrate.")
@shared.seed
@click.option(
    "--save_stats", metavar="FILE", help="Also gather every statistic of the calibration text, and save them here."
)
@click.option(
    "--stats",
    metavar="FILE",
    help="Use statistics that --save_stats saved: no forward pass. Give the same --calib, --calib_size, "
    "--calib_seq_len and --seed again; they say which statistics are meant.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and no progress.")
@click.option(
    "--smoothquant",
    "-sq",
    type=alpha_value,
    metavar="0..1|auto",
    help="Upstream's spelling: SmoothQuant with this alpha.",
)
@click.option("--per_token", is_flag=True, help="With --smoothquant: activation scales per token.")
@click.option("--per_channel", is_flag=True, help="With --smoothquant: weight scales per output channel.")
@click.option("--use_weight_only", is_flag=True, help="Upstream's spelling, with --weight_only_precision.")
@click.option(
    "--weight_only_precision",
    type=click.Choice(list(WEIGHT_ONLY_PRECISION)),
    help="Upstream's spelling: int8 W8A16, int4 W4A16, int4_awq W4A16_AWQ, int4_gptq W4A16_GPTQ.",
)
@click.option("--fp8_kv_cache", is_flag=True, help="Upstream's spelling of --kv_cache FP8.")
@click.option("--int8_kv_cache", is_flag=True, help="Upstream's spelling of --kv_cache INT8.")
def convert(as_json: bool, **flags: Any) -> None:
    """Convert a Hugging Face folder into a TensorRT-LLM checkpoint.

    Converts LlamaForCausalLM and MistralForCausalLM models on a CPU or a GPU, one decoder layer in memory
    at a time. Options may be spelled with - or _.
    """
    options = read_options(flags)
    signal.signal(signal.SIGTERM, interrupt)
    layers = Source(options.model_dir).model.num_hidden_layers
    with Bar("convert", layers, quiet=as_json) as bar:
        done = run(options, bar.update)
    for note in notes(done):
        click.echo(f"note: {note}", err=True)
    click.echo(json.dumps(done.manifest) if as_json else summary(done, options))


def read_options(flags: dict[str, Any]) -> ConvertOptions:
    """Resolve upstream's spellings into ConvertOptions."""
    for name in ("quant", "kv_cache"):
        flags[name] = None if flags[name] == "none" else flags[name]
    alpha, per_token, per_channel = flags.pop("smoothquant"), flags.pop("per_token"), flags.pop("per_channel")
    if alpha is None and (per_token or per_channel):
        raise InputError("--per_token and --per_channel go with --smoothquant ALPHA; or use --quant")
    if alpha is not None:
        if flags["quant"]:
            raise InputError("--smoothquant and --quant both name a quantization; give one")
        if flags["alpha"] != "auto":
            raise InputError("--smoothquant and --alpha both give the migration strength; give one")
        flags["quant"], flags["alpha"] = smoothquant_algo(per_token, per_channel), alpha
    weight_only, precision = flags.pop("use_weight_only"), flags.pop("weight_only_precision")
    if weight_only or precision:
        if flags["quant"]:
            raise InputError("--use_weight_only and another quantization are both given; give one")
        flags["quant"] = WEIGHT_ONLY_PRECISION[precision or "int8"]
    flags["sm"] = int(flags["sm"])
    if flags.pop("fp8_kv_cache"):
        if flags["kv_cache"] not in (None, "FP8"):
            raise InputError("--fp8_kv_cache and --kv_cache INT8 contradict each other")
        flags["kv_cache"] = "FP8"
    if flags.pop("int8_kv_cache"):
        if flags["kv_cache"] not in (None, "INT8"):
            raise InputError("--int8_kv_cache and --kv_cache FP8 contradict each other")
        flags["kv_cache"] = "INT8"
    if flags["alpha"] == "auto":
        flags["alpha"] = None
    return ConvertOptions(**flags)


def notes(done: Converted) -> Iterator[str]:
    """What a conversion chose or left out, where one might expect otherwise."""
    if done.manifest["float16_range"] == "not looked at":
        yield (
            "nothing was calibrated, so what layers make was not held against float16's range: enginesmith verify "
            "--reference does, and bfloat16 needs none of it"
        )
    if done.manifest["options"]["kv_cache"] == "FP8":
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
    ranks = options.tp_size * options.pp_size
    calibrated = (done.manifest["calibration"] or {}).get("sequences", options.calib_size)
    if calibrated < options.calib_size:
        cache += f", calibrated on {calibrated} sequences ({options.calib} has no more)"
    return f"{done.folder}: {what}{cache}, {ranks} rank{'s' if ranks > 1 else ''}, {size / 1e6:,.1f} MB"
