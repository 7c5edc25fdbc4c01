"""transformers: follows config.json alone; what a tensor's name has no place for is a warning, and what is missing is
made at random."""

from __future__ import annotations

from .common import not_tried
from .compressed import INTEGERS, Compressed, by_the_library
from .findings import Findings, misreads, note, refuses, some, unknown
from .folder import Folder
from .modelopt import in_config
from .packed import AWQ, GPTQ

TITLE, VERSION = "transformers", "5.17"


def rules(folder: Folder) -> Findings:
    if folder.method == "compressed-tensors":
        yield from by_the_library(Compressed(folder), misreads, compressed_rules)
    elif in_config(folder) is not None or (not folder.method and folder.beside is not None):
        yield from modelopt_rules(folder)
    elif folder.method in (GPTQ, AWQ):
        yield unknown(f"config.json: quant_method {folder.method} needs the package gptqmodel, which was not tried")
    else:
        yield from not_tried(folder)


def compressed_rules(one: Compressed) -> Findings:
    if one.said.text_or_none("quantization_status") != "compressed":
        yield misreads('config.json: no quantization_status "compressed": weights are made at random; add it')
    if not one.ignores_head:
        yield misreads("config.json: lm_head is not in ignore, and is taken for quantized; list it")
    beside, inside = one.folder.cache_scales
    if one.said.values.get("kv_cache_scheme") and inside and not beside:
        yield misreads(f"{some(inside)}: dropped; beside the linears the scale would be self_attn.k_scale and v_scale")
    if one.format == INTEGERS and not one.static:
        yield note("a token's scale is its largest value / 127.5 here, / 127 in vLLM and SGLang: compare by perplexity")
    if not one.weights.flag("symmetric", True):
        yield note("5.24 with compressed-tensors 0.19 refuses zero points of weights, whoever wrote them")
    dtype = one.folder.config.text_or_none("dtype") or one.folder.config.text_or_none("torch_dtype")
    scales = [linear.tensors.get("weight_scale") for linear in one.folder.linears]
    if dtype in ("bfloat16", "float16") and any(scale is not None and scale.dtype == "F32" for scale in scales):
        yield note(
            f"float32 scales are cast to the dtype that is loaded, {dtype}; load with dtype float32 to keep them"
        )


def modelopt_rules(folder: Folder) -> Findings:
    works = "convert the float model with --target compressed-tensors"
    packed = [linear.name for linear in folder.linears if getattr(linear.tensors.get("weight"), "dtype", "") == "U8"]
    if packed:
        yield refuses(f"{some(packed)}: two numbers a byte, a shape error; {works}")
    elif folder.linears:
        where = some([linear.name for linear in folder.linears])
        yield misreads(f"{where}: ModelOpt's scales are dropped with only a warning; {works}")
