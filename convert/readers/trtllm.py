"""TensorRT-LLM's PyTorch backend: follows hf_quant_config.json first; no INT8 linear, no GPTQ."""

from __future__ import annotations

from .common import contradicted, mixed, not_tried, rounded_twice, smoothed
from .compressed import FLOATING, Compressed
from .findings import Findings, misreads, note, refuses, some, unknown
from .folder import MODELOPT_FILE, Folder, Linear
from .layouts import damaged
from .modelopt import Modelopt, in_file, led_astray

TITLE, VERSION = "TensorRT-LLM", "1.3"
ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "W4A16_AWQ", "W8A16")
# Only these linears read a pre_quant_scale, and they must have one.
SCALED = ("o_proj", "down_proj")
# Formats whose linears have no tensor named weight.
OF_WORDS = ("gptq", "awq", "auto-round")
WORKS = "convert the float model with --target modelopt --quant FP8 or W4A16_AWQ"


def rules(folder: Folder) -> Findings:
    yield from led_astray(folder, TITLE)
    modelopt = in_file(folder)
    if modelopt is not None:
        yield from modelopt_rules(modelopt)
    elif folder.method == "compressed-tensors":
        yield from compressed_rules(Compressed(folder))
    elif folder.method in OF_WORDS and folder.linears:
        yield refuses(f"config.json: {folder.method} is taken for floating point, and finds no weight; {WORKS}")
    else:
        yield from not_tried(folder)


def compressed_rules(one: Compressed) -> Findings:
    if one.groups != 1:
        yield unknown(f"config.json: {one.groups} config_groups were not tried")
    elif one.inputs is None or one.bits != 8 or one.strategy != "channel" or one.static:
        yield refuses(f"config.json: {one.title}: only channel and token scales are accepted; {WORKS}")
    elif not one.floating:
        yield misreads(f"config.json: {one.title}: the bytes are taken for FP8, which is nonsense; {WORKS}")
    elif one.odd_cache:
        yield refuses("config.json: kv_cache_scheme is not FP8 with one static scale, a ValueError; remove it")
    elif one.format != FLOATING:
        yield unknown(f"config.json: {one.title} was not tried")
    else:
        yield from damaged(one.faults, unknown, refuses)
        yield from smoothed(one.folder)
        yield from contradicted(one.folder, one.outside, one.forgotten, "ignore")
        yield from cache_rules(one.folder)


def modelopt_rules(one: Modelopt) -> Findings:
    folder = one.folder
    if not one.tried:
        yield unknown(f"quant_algo {one.algo} was not tried")
        return
    if one.algo not in ALGORITHMS:
        yield refuses(f"{one.said.file}: quant_algo {one.algo or 'missing'}: the backend has no such linear; {WORKS}")
        return
    yield from damaged(one.faults, unknown, refuses)
    for group in mixed(folder, one.outside):
        yield unknown(f"{group}: not treated alike, which was not tried; quantize all of them or none")
    yield from contradicted(folder, one.outside, one.forgotten, "exclude_modules")
    if one.algo == "W4A16_AWQ":
        yield from awq_rules(one)
    else:
        yield from smoothed(folder)
    if one.algo == "FP8":
        yield from rounded_twice(folder)
    if one.algo.startswith("FP8"):
        yield note("runs from SM89 on")
    yield from cache_rules(folder)


def awq_rules(one: Modelopt) -> Findings:
    """A factor of the input is read where no norm stands before the linear, and must be there."""
    folder = one.folder
    if one.group is None:
        yield refuses(f"{one.said.file}: no group_size; put {MODELOPT_FILE} with one beside config.json")
    factors = {linear.full_name("pre_quant_scale") for linear in folder.linears if linear.last_name in SCALED}
    lacking = sorted(factors - folder.shards.keys())
    if lacking:
        yield refuses(f"{some(lacking)}: missing, a KeyError; write ones where nothing is scaled")
    dropped = [linear for linear in folder.smoothed if linear.last_name not in SCALED and not all_ones(folder, linear)]
    if dropped:
        name = some([linear.full_name("pre_quant_scale") for linear in dropped])
        yield misreads(f"{name}: dropped, as only {' and '.join(SCALED)} read one; fold it into the norm before")


def cache_rules(folder: Folder) -> Findings:
    if folder.cache_scales[0]:
        where = some(folder.cache_scales[0])
        yield unknown(f"{where}: scales of the KV cache beside k_proj and v_proj were not tried; put them inside")


def all_ones(folder: Folder, linear: Linear) -> bool:
    return bool((folder.values(linear.full_name("pre_quant_scale")) == 1).all())
