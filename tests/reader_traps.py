"""Details of a folder that one runtime or another reads wrong, each of which a test changes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from .reader_folders import ATTENTION, LAYER, MLP, SIZES, Sketch, awq, compressed, gptq, modelopt, plain

Make = Callable[[], Sketch]
Change = Callable[[Sketch], Any]


def weights(made: Sketch) -> dict[str, Any]:
    weights = made.said["config_groups"]["group_0"]["weights"]
    assert isinstance(weights, dict)
    return weights


def drop(name: str) -> Change:
    return lambda made: made.tensors.pop(name)


def say(**values: Any) -> Change:
    return lambda made: made.said.update(values)


def say_beside(**values: Any) -> Change:
    return lambda made: made.beside["quantization"].update(values) if made.beside else None


def factor(name: str, dtype: str = "F16") -> Change:
    return lambda made: made.put(f"{name}.pre_quant_scale", dtype, SIZES[name][1])


def every(*changes: Change) -> Change:
    return lambda made: [change(made) for change in changes]


def floating(*names: str) -> Change:
    """Leave linears in floating point, whatever lists say."""

    def change(made: Sketch) -> None:
        for name in names:
            for tensor in [tensor for tensor in made.tensors if tensor.startswith(f"{name}.")]:
                del made.tensors[tensor]
            made.put(f"{name}.weight", "F16", *SIZES[name])

    return change


def cache_scales(inside: bool) -> Change:
    places = ("k_proj.k_scale", "v_proj.v_scale") if inside else ("k_scale", "v_scale")
    return lambda made: [made.put(f"{ATTENTION}{place}", "F32") for place in places]


def nothing(made: Sketch) -> None:
    pass


Q, K, V, OUT = (f"{ATTENTION}{part}_proj" for part in "qkvo")
GATE, UP, DOWN = (f"{MLP}{part}_proj" for part in ("gate", "up", "down"))
ALONE: Change = lambda made: setattr(made, "beside", None)  # noqa: E731
CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
INT8, STATIC, FP8_STATIC = (
    lambda: compressed("int8"),
    lambda: compressed("int8_static"),
    lambda: compressed("fp8_static"),
)
FP8, SQ, AWQ4 = lambda: modelopt("FP8"), lambda: modelopt("W8A8_SQ_PER_CHANNEL"), lambda: modelopt("W4A16_AWQ")
# What is changed in a folder, the runtime that it is a trap for, its verdict, and words of the reason or note.
TRAPS: dict[str, tuple[Make, Change, str, str, str]] = {
    "INT8 in Edge": (INT8, nothing, "edge", "misreads", "taken for float16, and every scale dropped"),
    "INT8 in TensorRT-LLM": (INT8, nothing, "trtllm", "misreads", "taken for FP8"),
    "W8A16 in Edge": (lambda: modelopt("W8A16"), nothing, "edge", "misreads", "W8A16 is taken for float16"),
    "no algorithm in Edge": (FP8, say_beside(quant_algo=None), "edge", "misreads", "missing is taken for float16"),
    "FP8 by channel in Edge": (
        lambda: modelopt("FP8_PER_CHANNEL_PER_TOKEN"), nothing, "edge", "misreads", "is taken for FP8"),
    "FP8 by blocks in Edge": (FP8, say_beside(quant_algo="FP8_PB_WO"), "edge", "misreads", "is taken for FP8"),
    "MXFP8 in Edge": (
        FP8, every(say(quant_algo="MXFP8"), say_beside(quant_algo="MXFP8")), "edge", "unknown", "MXFP8 was not tried"),
    "ModelOpt in transformers": (FP8, nothing, "transformers", "misreads", "scales are dropped"),
    "ModelOpt's file alone in transformers": (
        FP8, lambda made: made.config.pop("quantization_config"), "transformers", "misreads", "scales are dropped"),
    "ModelOpt's file alone in vLLM": (
        FP8, lambda made: made.config.pop("quantization_config"), "vllm", "refuses", "--quantization modelopt"),
    "no quant_method in vLLM": (FP8, lambda made: made.said.pop("quant_method"), "vllm", "refuses", "no quant_method"),
    "ModelOpt's file alone in SGLang": (
        FP8, lambda made: made.config.pop("quantization_config"), "sglang", "reads", "SM89"),
    "packed rows in transformers": (AWQ4, nothing, "transformers", "refuses", "two numbers a byte"),
    "static INT8 in SGLang": (STATIC, nothing, "sglang", "refuses", "IndexError"),
    "static INT8 in SGLang, nothing fused": (
        STATIC, floating(Q, K, V, GATE, UP), "sglang", "misreads", "input_scale is ignored"),
    "asymmetric activations in SGLang": (
        lambda: compressed("int8_asym"), nothing, "sglang", "misreads", "executed as symmetric"),
    "unequal input scales, INT8": (
        STATIC, lambda made: made.number(f"{V}.input_scale", 0.25), "vllm", "misreads",
        f"{LAYER}self_attn: q_proj, k_proj, v_proj: unequal input_scale, of which the last"),
    "unequal input scales of gate and up": (
        STATIC, lambda made: made.number(f"{GATE}.input_scale", 0.25), "vllm", "misreads", "gate_proj, up_proj"),
    "unequal input scales, FP8": (
        FP8, lambda made: made.number(f"{K}.input_scale", 0.25), "vllm", "reads", "the largest is taken for all"),
    **{f"unequal FP8 scales in {runtime}": (
        FP8, lambda made: made.number(f"{Q}.weight_scale", 0.25), runtime, "reads", "rounded again to the largest")
        for runtime in ("vllm", "sglang", "trtllm")},
    **{f"unequal FP8 scales of llm-compressor in {runtime}": (
        FP8_STATIC, lambda made: made.number(f"{Q}.weight_scale", 0.25), runtime, "reads", "rounded again")
        for runtime in ("vllm", "sglang")},
    "factors of q/k/v in TensorRT-LLM": (AWQ4, factor(Q), "trtllm", "misreads", f"{Q}.pre_quant_scale: dropped"),
    "factors of gate in TensorRT-LLM": (AWQ4, factor(GATE), "trtllm", "misreads", f"{GATE}.pre_quant_scale: dropped"),
    "factors of 1 in TensorRT-LLM": (
        AWQ4, lambda made: made.put(f"{Q}.pre_quant_scale", "F16", 128, element=struct.pack("<e", 1)), "trtllm",
        "reads", ""),
    "factors of q/k/v in Edge": (AWQ4, factor(Q), "edge", "reads", ""),
    "no factors of o in TensorRT-LLM": (
        AWQ4, drop(f"{OUT}.pre_quant_scale"), "trtllm", "refuses", f"{OUT}.pre_quant_scale: missing, a KeyError"),
    "no factors of down in TensorRT-LLM": (
        AWQ4, drop(f"{DOWN}.pre_quant_scale"), "trtllm", "refuses", "missing, a KeyError"),
    **{f"factors in {runtime}": (INT8, factor(OUT), runtime, "misreads", f"{OUT}.pre_quant_scale: dropped")
       for runtime in ("vllm", "sglang", "transformers")},
    **{f"factors of FP8 in {runtime}": (FP8, factor(OUT), runtime, "misreads", f"{OUT}.pre_quant_scale: dropped")
       for runtime in ("edge", "vllm", "sglang", "trtllm")},
    "no group size, groups of 64": (
        lambda: modelopt("W4A16_AWQ", 64), ALONE, "edge", "misreads", "taken for groups of 128"),
    "no group size, groups of 128": (AWQ4, ALONE, "edge", "reads", ""),
    "no group size in the file": (AWQ4, say_beside(group_size=None), "edge", "misreads", "taken for groups of 1"),
    "no group size in TensorRT-LLM": (AWQ4, ALONE, "trtllm", "refuses", "no group_size"),
    "another group size": (AWQ4, say_beside(group_size=64), "edge", "misreads", "weight_scale is F32 [128, 1]"),
    "groups of 64": (lambda: modelopt("W4A16_AWQ", 64), nothing, "edge", "reads", "128 is documented"),
    "columns of scales in Edge": (
        SQ, lambda made: made.put(f"{Q}.weight_scale", "F32", 128, 1), "edge", "misreads", "not [128]"),
    "columns of scales in vLLM": (
        lambda: modelopt("FP8_PER_CHANNEL_PER_TOKEN"), lambda made: made.put(f"{Q}.weight_scale", "F32", 128, 1),
        "vllm", "refuses", "weight_scale is F32 [128, 1]"),
    **{f"rows of scales in {runtime}": (
        INT8, lambda made: made.put(f"{Q}.weight_scale", "F32", 128), runtime, "refuses", "[128, 1]")
        for runtime in ("vllm", "sglang", "transformers")},
    "another dtype in Edge": (
        SQ, lambda made: made.put(f"{Q}.weight", "U8", 128, 128), "edge", "misreads", "is U8"),
    **{f"{kind}: a scale below float16": (
        make, lambda made: made.number(f"{Q}.weight_scale", 5e-5), "edge", "misreads", "beyond float16's range")
        for kind, make in {"FP8": FP8, "AWQ": AWQ4}.items()},
    "an input scale below float16": (
        FP8, lambda made: made.number(f"{Q}.input_scale", 5e-5), "edge", "misreads", "beyond float16's range"),
    "a scale above float16": (
        FP8, lambda made: made.number(f"{Q}.input_scale", 1e5), "edge", "misreads", "beyond float16's range"),
    "a scale that float16 keeps": (FP8, lambda made: made.number(f"{Q}.weight_scale", 2**-14), "edge", "reads", ""),
    "a scale that float16 rounds": (
        FP8, lambda made: made.number(f"{Q}.weight_scale", 0.1), "edge", "reads", "rounded to float16"),
    "SmoothQuant's scales stay float32": (SQ, lambda made: made.number(f"{Q}.weight_scale", 1e-6), "edge", "reads", ""),
    "GPTQ: a scale below float16": (
        gptq, lambda made: made.put(f"{Q}.scales", "F16", 1, 128, element=struct.pack("<e", 5e-5)), "edge",
        "misreads", "beyond float16's range"),
    **{f"no {part} in Edge": (FP8, drop(f"{Q}.{part}"), "edge", "misreads", f"{Q}.{part} missing")
       for part in ("input_scale", "weight_scale")},
    "no input scale of SmoothQuant": (SQ, drop(f"{K}.input_scale"), "edge", "misreads", f"{K}.input_scale missing"),
    "no factor of SmoothQuant": (SQ, drop(f"{K}.pre_quant_scale"), "edge", "reads", ""),
    "no weight scale in transformers": (
        INT8, drop(f"{Q}.weight_scale"), "transformers", "misreads", f"{Q}.weight_scale missing"),
    "no weight scale in vLLM": (INT8, drop(f"{Q}.weight_scale"), "vllm", "unknown", f"{Q}.weight_scale missing"),
    "no input scale of static INT8 in transformers": (
        STATIC, drop(f"{Q}.input_scale"), "transformers", "misreads", f"{Q}.input_scale missing"),
    "INT4 with activations": (INT8, lambda made: weights(made).update(num_bits=4), "vllm", "unknown", "INT4 weights"),
    "asymmetric weights with activations": (
        INT8, lambda made: weights(made).update(symmetric=False), "vllm", "unknown", "not tried"),
    "GPUs of packed weights in vLLM": (lambda: compressed("w4"), nothing, "vllm", "reads", "from SM75 on"),
    "GPUs of INT8 in vLLM": (INT8, nothing, "vllm", "reads", "SM75 to SM90"),
    "GPUs of INT8 in SGLang": (INT8, nothing, "sglang", "reads", "from SM80 on"),
    "GPUs of FP8 in SGLang": (lambda: compressed("fp8"), nothing, "sglang", "reads", "only weights are FP8"),
    "GPUs of FP8 in TensorRT-LLM": (FP8, nothing, "trtllm", "reads", "from SM89 on"),
    "GPUs of Edge's wheel": (FP8, nothing, "edge", "reads", "SM80, SM86, SM100 and SM120"),
    "more tensors than Edge reads": (
        SQ, lambda made: made.put(f"{Q}.weight_zero_point", "I8", 128), "edge", "misreads", "nothing reads it"),
    "zero points of GPTQ in Edge": (
        gptq, lambda made: made.put(f"{Q}.qzeros", "I32", 1, 16, element=b"\x57" * 4), "edge", "misreads",
        f"{Q}.qzeros: zero points"),
    "zero points of version 2 in Edge": (
        gptq, lambda made: made.put(f"{Q}.qzeros", "I32", 1, 16, element=b"\x88" * 4), "edge", "reads", ""),
    "zero points that are left out in Edge": (
        gptq, lambda made: made.put(f"{Q}.qzeros", "I32", 1, 0), "edge", "reads", ""),
    "zero points of 7 in AWQ's format": (lambda: awq(b"\x77" * 4), nothing, "edge", "misreads", "zero points"),
    "desc_act in Edge": (gptq, say(desc_act=True), "edge", "unknown", "desc_act false were tried"),
    "groups of 32 in Edge": (lambda: gptq(32), nothing, "edge", "unknown", "groups of 128 or 64"),
    "groups of 64 of GPTQ in Edge": (lambda: gptq(64), nothing, "edge", "reads", "64 was exported"),
    "sizes of the plugin": (
        AWQ4, every(
            lambda made: made.put(f"{Q}.weight", "U8", 48, 128),
            lambda made: made.put(f"{Q}.weight_scale", "F32", 96, 1),
        ), "edge", "refuses", f"{Q}: input and output channels are no multiples of 64"),
    "no chat template": (FP8, lambda made: setattr(made, "template", False), "edge", "refuses", "chat_template.jinja"),
    "no chat template, misread": (INT8, lambda made: setattr(made, "template", False), "edge", "misreads", "float16"),
    **{f"actorder group in {runtime}": (
        lambda: compressed("w4"), lambda made: weights(made).update(actorder="group"), runtime, "refuses", "actorder")
        for runtime in ("vllm", "sglang", "transformers")},
    "actorder static": (
        lambda: compressed("w4"), lambda made: weights(made).update(actorder="static"), "vllm", "reads", ""),
    "desc_act in vLLM": (gptq, say(desc_act=True), "vllm", "refuses", "desc_act"),
    "asymmetric GPTQ in vLLM": (gptq, say(sym=False), "vllm", "refuses", "sym false"),
    "dynamic INT8 in transformers": (INT8, nothing, "transformers", "reads", "127.5"),
    "float32 scales in transformers": (INT8, nothing, "transformers", "reads", "float32 scales are cast"),
    "KV scales of compressed-tensors in Edge": (
        FP8, cache_scales(inside=False), "edge", "misreads", f"{ATTENTION}k_scale and 1 more: dropped"),
    "KV scales of compressed-tensors in TensorRT-LLM": (
        FP8, cache_scales(inside=False), "trtllm", "unknown", f"{ATTENTION}k_scale and 1 more"),
    "INT8 KV cache in TensorRT-LLM": (
        lambda: compressed("fp8"), say(kv_cache_scheme={**CACHE, "type": "int"}), "trtllm", "refuses", "a ValueError"),
    "KV scales of ModelOpt in transformers": (
        INT8, every(cache_scales(inside=True), say(kv_cache_scheme=CACHE)), "transformers", "misreads",
        f"{ATTENTION}k_proj.k_scale and 1 more: dropped"),
    "KV scales of compressed-tensors in transformers": (
        INT8, every(cache_scales(inside=False), say(kv_cache_scheme=CACHE)), "transformers", "reads", ""),
    "KV cache with AWQ in Edge": (
        AWQ4, every(cache_scales(inside=True), say_beside(kv_cache_quant_algo="FP8")), "edge", "misreads",
        "with W4A16_AWQ the KV cache stays float16"),
    "KV cache with FP8 in Edge": (
        FP8, every(cache_scales(inside=True), say_beside(kv_cache_quant_algo="FP8")), "edge", "reads", ""),
    "KV cache that is not stated, in Edge": (
        FP8, cache_scales(inside=True), "edge", "misreads", "though kv_cache_quant_algo is null"),
    "KV cache without scales in Edge": (
        FP8, say_beside(kv_cache_quant_algo="FP8"), "edge", "reads", "it stays float16"),
    "KV cache without scales in Edge, config.json alone": (
        FP8, every(ALONE, say(kv_cache_scheme=CACHE)), "edge", "reads", "they are 1"),
    "KV cache without scales in vLLM": (INT8, say(kv_cache_scheme=CACHE), "vllm", "reads", "1.0 is taken"),
    "INT8 KV cache in vLLM": (
        INT8, say(kv_cache_scheme={**CACHE, "type": "int"}), "vllm", "refuses", "NotImplementedError"),
    "INT8 KV cache in SGLang": (INT8, say(kv_cache_scheme={**CACHE, "type": "int"}), "sglang", "reads", "a warning"),
    "q alone in floating point": (
        INT8, every(floating(Q), say(ignore=["lm_head", Q])), "vllm", "refuses", "a ValueError"),
    "up alone in floating point, ModelOpt": (
        FP8, every(floating(GATE), say(ignore=["lm_head", GATE])), "vllm", "refuses", "a ValueError"),
    "o alone in floating point": (INT8, every(floating(OUT), say(ignore=["lm_head", OUT])), "vllm", "reads", ""),
    "o in floating point by a pattern": (
        INT8, every(floating(OUT), say(ignore=["lm_head", "re:.*o_proj"])), "vllm", "reads", ""),
    "o in floating point, not listed": (INT8, floating(OUT), "vllm", "unknown", "ignore does not list it"),
    "o listed, but quantized": (INT8, say(ignore=["lm_head", OUT]), "vllm", "unknown", "correct the list"),
    **{f"quantization_status {status} in transformers": (
        INT8, say(quantization_status=status), "transformers", "misreads", "made at random")
        for status in (None, "frozen")},
    "the head is not listed in transformers": (
        INT8, say(ignore=[]), "transformers", "misreads", "lm_head is not in ignore"),
    "the head is not listed in vLLM": (INT8, say(ignore=[]), "vllm", "reads", ""),
    "the head is not listed in Edge, config.json alone": (
        FP8, every(ALONE, say(ignore=[])), "edge", "misreads", "does not list lm_head"),
    "o is not listed in Edge, config.json alone": (
        FP8, every(ALONE, floating(OUT)), "edge", "misreads", f"does not list {OUT}"),
    "nothing is listed in Edge": (FP8, every(floating(OUT), say_beside(exclude_modules=[])), "edge", "reads", ""),
    **{f"the head is not listed in {runtime}": (
        FP8, every(say(ignore=[]), say_beside(exclude_modules=[])), runtime, "unknown", "lm_head: in floating point")
        for runtime in ("sglang", "trtllm")},
    "ModelOpt's head is not listed in vLLM": (FP8, say(ignore=[]), "vllm", "unknown", "lm_head: in floating point"),
    "a head that is quantized": (
        FP8, every(
            lambda made: made.put("lm_head.weight", "F8_E4M3", 64, 128),
            lambda made: made.put("lm_head.weight_scale", "F32"), lambda made: made.put("lm_head.input_scale", "F32"),
            say(ignore=[]),
        ), "vllm", "reads", ""),
    "sparsity": (INT8, say(sparsity_config={"format": "sparse-24-bitmask"}), "vllm", "unknown", "sparsity_config"),
    "sparsity that is none": (INT8, say(sparsity_config={"format": "dense"}), "vllm", "reads", ""),
    "transforms": (INT8, say(transform_config={"config_groups": {"R1": {}}}), "vllm", "unknown", "transform_config"),
    **{f"an unknown key in {runtime}": (
        INT8, lambda made: weights(made).update(colour=1), runtime, "refuses", "weights.colour")
        for runtime in ("vllm", "sglang", "transformers")},
    **{f"hf_quant_config.json beside in {runtime}": (
        INT8, lambda made: setattr(made, "beside", {"quantization": {"quant_algo": "FP8"}}), runtime, "misreads",
        "and not config.json's compressed-tensors") for runtime in ("edge", "trtllm")},
    "hf_quant_config.json beside in vLLM": (
        INT8, lambda made: setattr(made, "beside", {"quantization": {"quant_algo": "FP8"}}), "vllm", "reads", ""),
    "two algorithms": (FP8, say(quant_algo="W8A16"), "edge", "misreads", "config.json says W8A16"),
    "a part of a name in vLLM": (FP8, say(ignore=["proj"]), "vllm", "misreads", "contains an entry of ignore"),
    "activations beside packed weights": (
        lambda: compressed("w4"),
        lambda made: made.said["config_groups"]["group_0"].update(input_activations={"num_bits": 8, "dynamic": True}),
        "vllm", "misreads", "activations get quantized"),
    "groups without a kernel": (
        lambda: compressed("w4"), every(
            lambda made: weights(made).update(group_size=16),
            *(lambda made, name=name: made.put(f"{name}.weight_scale", "F16", SIZES[name][0], SIZES[name][1] // 16)
              for name in SIZES)
        ), "vllm", "refuses", "group_size 16"),
    "several groups": (
        INT8, lambda made: made.said["config_groups"].update(group_1={}), "vllm", "unknown", "2 config_groups"),
    "no zero points of GPTQ in Edge": (gptq, drop(f"{Q}.qzeros"), "edge", "misreads", f"{Q}.qzeros missing"),
    **{f"factors of GPTQ in {runtime}": (gptq, factor(Q), runtime, "misreads", f"{Q}.pre_quant_scale: dropped")
       for runtime in ("edge", "vllm", "sglang")},
    "sizes of the plugin, GPTQ": (
        gptq, every(
            lambda made: made.put(f"{Q}.qweight", "I32", 12, 128), lambda made: made.put(f"{Q}.g_idx", "I32", 96)
        ), "edge", "refuses", "no multiples of 64"),
    **{f"no scales of GPTQ in {runtime}": (gptq, drop(f"{Q}.scales"), runtime, "unknown", f"{Q}.scales missing")
       for runtime in ("vllm", "sglang")},
    "groups of GPTQ without a kernel": (lambda: gptq(16), nothing, "vllm", "refuses", "group_size 16"),
    "GPTQ of 2 bits": (gptq, say(bits=2), "vllm", "refuses", "bits 2"),
    "GPTQ of 2 bits in SGLang": (gptq, say(bits=2), "sglang", "unknown", "only 4 bits"),
    "AWQ of 8 bits": (awq, say(bits=8), "vllm", "refuses", "bits 8"),
    "q alone in floating point in SGLang": (
        INT8, every(floating(Q), say(ignore=["lm_head", Q])), "sglang", "unknown", "not treated alike"),
    "q alone in floating point in TensorRT-LLM": (
        FP8, every(floating(Q), say_beside(exclude_modules=["lm_head", Q])), "trtllm", "unknown", "not treated alike"),
    "static asymmetric activations in vLLM": (
        STATIC, lambda made: made.said["config_groups"]["group_0"]["input_activations"].update(symmetric=False),
        "vllm", "unknown", "input_zero_point"),
    "static asymmetric activations with zero points": (
        STATIC, every(
            lambda made: made.said["config_groups"]["group_0"]["input_activations"].update(symmetric=False),
            *(lambda made, name=name: made.put(f"{name}.input_zero_point", "I8", 1) for name in SIZES),
        ), "vllm", "reads", "documented as untested"),
    "another format in TensorRT-LLM": (
        lambda: compressed("fp8"),
        lambda made: made.said["config_groups"]["group_0"].update(format="naive-quantized"), "trtllm", "unknown",
        "was not tried"),
    "several groups in TensorRT-LLM": (
        INT8, lambda made: made.said["config_groups"].update(group_1={}), "trtllm", "unknown", "2 config_groups"),
    "no weight scale in TensorRT-LLM": (
        lambda: compressed("fp8"), drop(f"{Q}.weight_scale"), "trtllm", "unknown", f"{Q}.weight_scale missing"),
    "no weight scale of ModelOpt in TensorRT-LLM": (
        FP8, drop(f"{Q}.weight_scale"), "trtllm", "unknown", f"{Q}.weight_scale missing"),
    "no weight scale of ModelOpt in SGLang": (
        FP8, drop(f"{Q}.weight_scale"), "sglang", "unknown", f"{Q}.weight_scale missing"),
    "factors of compressed-tensors in TensorRT-LLM": (
        lambda: compressed("fp8"), factor(Q), "trtllm", "misreads", "dropped"),
    "o not listed in TensorRT-LLM": (
        lambda: compressed("fp8"), floating(OUT), "trtllm", "unknown", "ignore does not list it"),
    "KV scales beside in TensorRT-LLM": (
        lambda: compressed("fp8"), cache_scales(inside=False), "trtllm", "unknown", f"{ATTENTION}k_scale"),
    "scales of the loaded dtype": (lambda: compressed("w4"), nothing, "transformers", "reads", ""),
    "another tool": (plain, lambda made: made.config.update(quantization_config={"quant_method": "hqq"}), "vllm",
                     "unknown", "hqq was not tried"),
    "nothing says how": (INT8, lambda made: made.config.pop("quantization_config"), "edge", "misreads", "no quantiz"),
    **{f"nothing says how in {runtime}": (
        INT8, lambda made: made.config.pop("quantization_config"), runtime, "unknown", "has no quantization_config")
        for runtime in ("vllm", "sglang", "trtllm", "transformers")},
    "FP8 below SM89": (FP8, nothing, "vllm", "reads", "below, only weights are FP8"),
    "AutoRound in TensorRT-LLM": (gptq, say(quant_method="auto-round"), "trtllm", "refuses", "finds no weight"),
}  # fmt: skip
