"""TensorRT Edge-LLM: names of algorithms by their parts, tensors by their names; no check of shape or completeness."""

from __future__ import annotations

from .common import smoothed
from .findings import Findings, misreads, note, refuses, some, unknown
from .folder import Folder, Linear
from .layouts import Layout, damaged, faults
from .modelopt import Modelopt, in_file, led_astray
from .packed import GPTQ, Packed, packed
from .values import beyond_float16, exact_in_float16, symmetric_zeros

TITLE, VERSION = "Edge-LLM", "0.11"
FP8, INT8_SQ, INT4_AWQ = "FP8", "W8A8_SQ_PER_CHANNEL", "W4A16_AWQ"
# Parts of the names of formats that it knows, and that were not tried.
OWN = ("FP4", "MX", "MIXED")
# Where hf_quant_config.json does not say, and what is documented.
GROUP, MULTIPLE = 128, 64
WORKS = "convert the float model with --target edge"


def rules(folder: Folder) -> Findings:
    yield from led_astray(folder, TITLE)
    modelopt, of_words = in_file(folder), packed(folder)
    if modelopt is not None:
        yield from modelopt_rules(modelopt)
    elif of_words is not None:
        yield from packed_rules(of_words)
    elif folder.linears:
        what = folder.method or "no quantization_config"
        yield misreads(f"config.json: {what} is taken for float16, and every scale dropped; {WORKS}")
    if not folder.has_chat_template:
        yield refuses("chat_template.jinja is missing: the exporter ends with exit code 1; add one")
    yield note("its wheel has kernels for SM80, SM86, SM100 and SM120")


def taken_for(algo: str) -> str:
    """What the exporter makes of an algorithm's name."""
    if "FP8" in algo:
        return FP8
    if "W8A8" in algo or "INT8" in algo:
        return INT8_SQ
    return INT4_AWQ if "W4A16" in algo and "AWQ" in algo else "float16"


def modelopt_rules(one: Modelopt) -> Findings:
    file, taken = one.said.file, taken_for(one.algo)
    if any(part in one.algo for part in OWN):
        yield unknown(f"{file}: quant_algo {one.algo} was not tried")
        return
    if taken != one.algo:
        yield misreads(f"{file}: quant_algo {one.algo or 'missing'} is taken for {taken}; {WORKS}")
        return
    assert one.layout is not None
    yield from tensor_rules(one.folder, one.layout)
    if taken == FP8:
        yield from smoothed(one.folder)
        yield from scale_rules(one.folder, ("weight_scale", "input_scale"))
    if taken == INT4_AWQ:
        yield from group_rules(one)
        yield from plugin_rules(one.folder.linears, one.layout)
        yield from scale_rules(one.folder, ("weight_scale",))
    yield from cache_rules(one)
    if one.folder.beside is None and one.forgotten:
        yield misreads(f"config.json: ignore does not list {some(one.forgotten)}, taken for quantized; list it")


def tensor_rules(folder: Folder, layout: Layout) -> Findings:
    """Tensors are assigned by name: what is missing keeps a default, what is left over is skipped."""
    found = faults(folder.linears, layout)
    yield from damaged(found, misreads, misreads)
    if found.extra:
        yield misreads(f"{some(found.extra)}: dropped, as nothing reads it; make the folder without it")


def group_rules(one: Modelopt) -> Findings:
    """The group size is believed; where none is stated it is 128 in config.json, and 1 in the file beside."""
    stated = one.group or (GROUP if one.said is one.folder.embedded else 1)
    others = [linear.name for linear in one.folder.linears if groups_of(linear) not in (None, stated)]
    if others and one.group is None:
        yield misreads(
            f"{one.said.file}: no group_size, so those of {some(others)} are taken for groups of {stated}; state it"
        )
    if one.group not in (None, GROUP):
        yield note(f"{one.said.file}: group_size {stated}: {GROUP} is documented; 64 was exported")


def groups_of(linear: Linear) -> int | None:
    """Input channels that share a scale, as the tensors have it."""
    weight, scale = linear.tensors.get("weight"), linear.tensors.get("weight_scale")
    if weight is None or scale is None or len(weight.shape) != 2 or len(scale.shape) != 2 or not scale.shape[1]:
        return None
    return weight.shape[1] // scale.shape[1]


def plugin_rules(linears: list[Linear], layout: Layout) -> Findings:
    """Sizes of the plugin that multiplies by weights of 4 bits."""
    weights = [(linear.name, linear.tensors.get(layout.weight)) for linear in linears]
    sizes = {name: layout.size(held.shape) for name, held in weights if held is not None and len(held.shape) == 2}
    odd = [name for name, size in sizes.items() if any(count % MULTIPLE for count in size)]
    if odd:
        yield refuses(
            f"{some(odd)}: input and output channels are no multiples of {MULTIPLE}, a ValueError; export with "
            "--int4-gemm-plugin-version 1, which needs multiples of 64 and 4"
        )


def scale_rules(folder: Folder, suffixes: tuple[str, ...]) -> Findings:
    """These scales become float16 in the graph."""
    names = [linear.full_name(suffix) for linear in folder.linears for suffix in suffixes if suffix in linear.tensors]
    beyond, inexact = [], []
    for name in names:
        scales = folder.values(name)
        if beyond_float16(scales):
            beyond.append(name)
        elif not exact_in_float16(scales):
            inexact.append(name)
    if beyond:
        yield misreads(f"{some(beyond)}: scales beyond float16's range (6.1e-5 to 65504) are rounded to it; scale anew")
    if inexact:
        yield note(f"{some(inexact)}: scales are rounded to float16")


def cache_rules(one: Modelopt) -> Findings:
    """The scales' tensors switch an FP8 KV cache on, whatever kv_cache_quant_algo says."""
    folder = one.folder
    stated = one.said.has("kv_cache_quant_algo") or one.said.has("kv_cache_scheme")
    outside, inside = folder.cache_scales
    if outside:
        yield misreads(f"{some(outside)}: dropped: these scales are read inside k_proj and v_proj only")
    if inside and one.algo == INT4_AWQ:
        yield misreads(f"{some(inside)}: dropped: with W4A16_AWQ the KV cache stays float16; make it without")
    elif inside and folder.beside is not None and not stated:
        yield misreads(f"{some(inside)}: makes the KV cache FP8, though kv_cache_quant_algo is null; state FP8")
    elif stated and not inside:
        becomes = "they are 1" if folder.beside is None else "it stays float16"
        yield note(f"{one.said.file}: a quantized KV cache is stated, and no scales are there: {becomes}")


def packed_rules(one: Packed) -> Findings:
    folder = one.folder
    if one.bits != 4 or one.reordered or one.group not in (64, GROUP):
        yield unknown(f"config.json: only 4 bits, groups of {GROUP} or 64, desc_act false were tried")
        return
    yield from tensor_rules(folder, one.layout)
    zeros = [linear.full_name("qzeros") for linear in folder.linears if "qzeros" in linear.tensors]
    asymmetric = [name for name in zeros if not symmetric_zeros(folder.values(name), one.method == GPTQ)]
    if asymmetric:
        yield misreads(f"{some(asymmetric)}: zero points are put into the weights, and those clamped; quantize without")
    yield from smoothed(folder)
    yield from scale_rules(folder, ("scales",))
    yield from plugin_rules(folder.linears, one.layout)
    if one.group != GROUP:
        yield note(f"config.json: group_size {one.group}: {GROUP} is documented; 64 was exported")
