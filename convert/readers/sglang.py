"""SGLang: compressed-tensors and ModelOpt's FP8, with kernels of its own."""

from __future__ import annotations

from .common import FP8_GPUS, contradicted, not_tried, rounded_twice, smoothed
from .compressed import INTEGERS, Compressed, by_the_library
from .findings import Findings, misreads, note, refuses, unknown
from .folder import Folder
from .layouts import damaged, faults
from .modelopt import Modelopt, in_config, in_file
from .packed import GPTQ, Packed

TITLE, VERSION = "SGLang", "0.5.23"


def rules(folder: Folder) -> Findings:
    modelopt = in_file(folder) if not folder.method else in_config(folder)
    if folder.method == "compressed-tensors":
        yield from by_the_library(Compressed(folder), unknown, compressed_rules)
    elif modelopt is not None:
        yield from modelopt_rules(modelopt)
    elif folder.method == GPTQ:
        yield from gptq_rules(Packed(folder))
    else:
        yield from not_tried(folder)


def compressed_rules(one: Compressed) -> Findings:
    for group in one.mixed:
        yield unknown(f"{group}: not treated alike, which was not tried; quantize all of them or none")
    if one.asymmetric:
        yield misreads("config.json: asymmetric activations are executed as symmetric; quantize with symmetric true")
    if one.format == INTEGERS and one.static:
        works = "quantize with dynamic activations"
        if any(linear.quantized for group in one.folder.fused for linear in group):
            yield refuses(f"config.json: static INT8 activations: fused q/k/v cannot be loaded, an IndexError; {works}")
        else:
            yield misreads(f"config.json: static INT8 activations: input_scale is ignored; {works}")
    if one.floating:
        yield note(FP8_GPUS)
        yield from rounded_twice(one.folder)
    else:
        yield note("runs from SM80 on")
    if one.odd_cache:
        yield note("config.json: kv_cache_scheme is not FP8 with one static scale: ignored, with a warning")


def modelopt_rules(one: Modelopt) -> Findings:
    if not one.tried:
        yield unknown(f"quant_algo {one.algo} was not tried")
    elif one.algo != "FP8":
        no = f"{one.said.file}: quant_algo {one.algo or 'missing'}: of ModelOpt only FP8 is read"
        yield refuses(f"{no}; convert the float model with --target compressed-tensors")
    else:
        yield from damaged(one.faults, unknown, refuses)
        yield from smoothed(one.folder)
        yield from contradicted(one.folder, one.outside, one.forgotten, "ignore")
        yield note("runs from SM89 on")
        yield from rounded_twice(one.folder)


def gptq_rules(one: Packed) -> Findings:
    if one.bits != 4 or one.reordered or not one.symmetric:
        yield unknown("config.json: only 4 bits, symmetric, desc_act false were tried")
        return
    yield from damaged(faults(one.folder.linears, one.layout), unknown, refuses)
    yield from smoothed(one.folder)
