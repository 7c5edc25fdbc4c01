"""vLLM: follows config.json's quantization_config; a linear's parts become one linear, with one input scale."""

from __future__ import annotations

from .common import FP8_GPUS, contradicted, mixed, not_tried, rounded_twice, smoothed, unequal
from .compressed import INTEGERS, Compressed, by_the_library
from .findings import Findings, misreads, note, refuses, some, unknown
from .folder import MODELOPT_FILE, Folder
from .layouts import damaged, faults
from .modelopt import Modelopt, in_config
from .packed import AWQ, WHOLE_ROW, Packed, packed

TITLE, VERSION = "vLLM", "0.33"
MARLIN_GROUPS = (32, 64, 128)


def rules(folder: Folder) -> Findings:
    modelopt, of_words = in_config(folder), packed(folder)
    if folder.method == "compressed-tensors":
        yield from by_the_library(Compressed(folder), unknown, compressed_rules)
    elif modelopt is not None:
        yield from modelopt_rules(modelopt)
    elif of_words is not None:
        yield from packed_rules(of_words)
    elif folder.beside is not None and folder.linears:
        yield refuses(f"config.json: no quantization_config beside {MODELOPT_FILE}; start with --quantization modelopt")
    else:
        yield from not_tried(folder)


def compressed_rules(one: Compressed) -> Findings:
    folder = one.folder
    for group in one.mixed:
        yield refuses(f"{group}: not treated alike, a ValueError; quantize all of them or none")
    if one.format == "pack-quantized" and one.inputs is not None:
        yield misreads(
            "config.json: input_activations beside packed weights: activations get quantized; set it to null"
        )
    if one.layout.group not in (None, *MARLIN_GROUPS):
        yield refuses(f"config.json: group_size {one.layout.group}: kernels have {MARLIN_GROUPS} and whole rows")
    if one.format == INTEGERS:
        yield note("INT8 runs on SM75 to SM90; not on SM100 and above, its documentation says")
        if one.static:
            for group in unequal(folder, "input_scale"):
                yield misreads(f"{group}: unequal input_scale, of which the last loaded counts; write one for all")
            if one.asymmetric:
                yield note("static asymmetric activations are documented as untested")
    elif one.floating:
        yield note(FP8_GPUS)
        yield from rounded_twice(folder)
    else:
        yield note("runs from SM75 on")
    yield from cache_rules(one)


def cache_rules(one: Compressed) -> Findings:
    if one.odd_cache:
        yield refuses("config.json: kv_cache_scheme is not FP8 with one static scale, a NotImplementedError; remove it")
    elif one.said.values.get("kv_cache_scheme") and not any(one.folder.cache_scales):
        yield note("the KV cache becomes FP8, and no scales of it are there: 1.0 is taken")


def modelopt_rules(one: Modelopt) -> Findings:
    folder = one.folder
    if not one.tried:
        yield unknown(f"config.json: quant_algo {one.algo} was not tried")
        return
    if one.algo not in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
        no = f"config.json: quant_algo {one.algo or 'missing'}: a ValueError, as of ModelOpt only FP8 and FP4 are read"
        yield refuses(f"{no}; convert the float model with --target compressed-tensors")
        return
    if not one.said.has("quant_method"):
        yield refuses("config.json: no quant_method in quantization_config; add modelopt")
    yield from damaged(one.faults, unknown, refuses)
    yield from smoothed(folder)
    for group in mixed(folder, one.outside):
        yield refuses(f"{group}: not treated alike, a ValueError; quantize all of them or none")
    yield from contradicted(folder, one.outside, one.forgotten, "ignore")
    yield from substrings(one)
    yield note(FP8_GPUS)
    if one.algo == "FP8":
        yield from rounded_twice(folder)


def substrings(one: Modelopt) -> Findings:
    """A name that contains an entry of the list is left in floating point, too, whatever ModelOpt means by it."""
    folder, entries = one.folder, [entry for entry in one.listed if entry]
    folder.check_tries(one.said, "ignore", entries)
    hit = [linear.name for linear in folder.linears if any(entry in linear.name for entry in entries)]
    more = [name for name in hit if name not in one.outside]
    if more:
        yield misreads(
            f"{some(more)}: its name contains an entry of ignore, so it is taken for floating point; list full names"
        )


def packed_rules(one: Packed) -> Findings:
    works = "or convert the float model with --target compressed-tensors"
    if one.bits != 4 and not (one.bits == 8 and one.method != AWQ):
        yield refuses(f"config.json: bits {one.bits}: a ValueError; quantize with 4, {works}")
        return
    if one.reordered:
        yield refuses(f"config.json: desc_act true; quantize with desc_act false, {works}")
    if one.method != AWQ and not one.symmetric:
        yield refuses(f"config.json: sym false; quantize with sym true, {works}")
    if one.group not in (WHOLE_ROW, *MARLIN_GROUPS):
        yield refuses(f"config.json: group_size {one.group}: kernels have {MARLIN_GROUPS} and whole rows; {works}")
    yield from damaged(faults(one.folder.linears, one.layout), unknown, refuses)
    yield from smoothed(one.folder)
