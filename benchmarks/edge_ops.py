"""TensorRT Edge-LLM's exported graph made executable: ONNX's own operators in place of its plugins.

One sequence from position 0, as a prompt is computed: no pages of keys and values, no sliding window. What the plugins
compute is told by their attributes; the packing of INT4 is that of the first version of the plugin.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

DOMAIN = "reference"
# The last opset that ONNX Runtime has on a CPU, and the first with attention.
OPSET, IR_VERSION = 23, 11
ATTENTION = """
<domain: "{domain}", opset_import: ["": {opset}]>
{name} (joined, past, rope) => (mixed, past_and_these)
{{
    axis = Constant <value_ints = [0]> ()
    widths = Constant <value_ints = [{q_width}, {kv_width}, {kv_width}]> ()
    half = Constant <value_ints = [{half}, {half}]> ()
    single = Cast <to = 1> (joined)
    batch = Unsqueeze (single, axis)
    q, k, values = Split <axis = -1> (batch, widths)
    table = Unsqueeze (rope, axis)
    cos, sin = Split <axis = -1> (table, half)
    queries = RotaryEmbedding <num_heads = {q_heads}> (q, cos, sin)
    keys = RotaryEmbedding <num_heads = {kv_heads}> (k, cos, sin)
    {cache}
    heads = Attention <is_causal = 1, q_num_heads = {q_heads}, kv_num_heads = {kv_heads}, scale = {scale}>
        (queries, {kept}keys, {kept}values)
    row = Squeeze (heads, axis)
    mixed = Cast <to = 10> (row)
    past_and_these = Identity (past)
}}
"""
FP8_CACHE = """{what}_scale = Constant <value_float = {scale}> ()
    {what}_e4m3 = QuantizeLinear <output_dtype = 17> ({what}, {what}_scale)
    cached_{what} = DequantizeLinear ({what}_e4m3, {what}_scale)
    """


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def attention(name: str, given: dict[str, Any]) -> onnx.FunctionProto:
    """AttentionPlugin: rotary positions, then causal attention, keys and values rounded as an FP8 cache keeps them."""
    beyond = ("enable_tree_attention", "enable_qk_norm")
    if given["sliding_window_size"] > 0 or any(given[flag] for flag in beyond):
        sys.exit(f"no reference for a sliding window, {' or '.join(beyond)}")
    q_heads, kv_heads, size = given["num_q_heads"], given["num_kv_heads"], given["head_size"]
    cached = given["enable_fp8_kv_cache"]
    scales = zip(("keys", "values"), given["qkv_scales"][1:], strict=True) if cached else ()
    text = ATTENTION.format(
        domain=DOMAIN, opset=OPSET, name=name, q_heads=q_heads, kv_heads=kv_heads, half=size // 2,
        q_width=q_heads * size, kv_width=kv_heads * size, scale=float(given["attention_scale"]),
        cache="".join(FP8_CACHE.format(what=what, scale=float(scale)) for what, scale in scales),
        kept="cached_" if cached else "",
    )  # fmt: skip
    return parser.parse_function(text)


def unpacked(packed: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Int4GroupwiseGemmPlugin's bytes [rows / 2, columns] as -8 to 7 [rows, columns].

    Four rows share 64 columns of 16-bit words, the first row in the lowest nibble; of 32 columns the pairs lie in the
    order 0, 4, 8, 12, 1, 5, ..., and of each eight columns the even ones before the odd ones.
    """
    words = np.ascontiguousarray(packed).view(np.uint16).reshape(rows // 4, columns // 64, 64)
    nibbles = np.stack([words >> shift & 15 for shift in (0, 4, 8, 12)], -1)
    nibbles = nibbles.reshape(rows // 4, columns // 64, 4, 64).swapaxes(1, 2).reshape(rows, columns // 32, 4, 2, 4)
    pairs = nibbles.swapaxes(3, 4)
    return pairs.swapaxes(2, 3).reshape(rows, columns).astype(np.float32) - 8


def dense(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], dtype: type) -> onnx.TensorProto:
    """What Int4GroupwiseGemmPlugin multiplies by, [columns, rows]."""
    given = attributes(node)
    rows, columns = given["gemm_n"], given["gemm_k"]
    integers = unpacked(numpy_helper.to_array(tensors[node.input[1]]), rows, columns)
    scales = numpy_helper.to_array(tensors[node.input[2]]).astype(np.float32)
    weight = (integers.T.reshape(-1, given["group_size"], rows) * scales[:, None]).reshape(columns, rows)
    return numpy_helper.from_array(weight.astype(dtype), f"{node.input[1]}.dense")


def replace(node: onnx.NodeProto, domain: str, operator: str, inputs: list[str], **given: Any) -> None:
    del node.input[:], node.attribute[:]
    node.input.extend(inputs)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in given.items())
    node.domain, node.op_type = domain, operator


def widen(model: onnx.ModelProto) -> None:
    """Make every float16 of a graph float32: what remains of a difference is no rounding."""
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    constants = [attribute.t for node in nodes for attribute in node.attribute if attribute.name == "value"]
    for tensor in (*model.graph.initializer, *constants):
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.name in ("to", "output_dtype") and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT


def executable(path: Path, float32: bool) -> tuple[onnx.ModelProto, Counter[str]]:
    """(the graph for ONNX Runtime, how many nodes of each operator it had).

    Args:
        float32: compute in float32 what the graph has in float16.
    """
    model = onnx.load(path)
    graph = model.graph
    nodes = Counter(node.op_type for node in graph.node)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "AttentionPlugin":
            name = f"Attention{len(model.functions)}"
            model.functions.append(attention(name, attributes(node)))
            replace(node, DOMAIN, name, [node.input[0], node.input[1], node.input[3]])
        elif node.op_type == "Int4GroupwiseGemmPlugin":
            graph.initializer.append(dense(node, tensors, np.float32 if float32 else np.float16))
            replace(node, "", "MatMul", [node.input[0], graph.initializer[-1].name])
        elif node.op_type == "QkvConcatPlugin":
            replace(node, "", "Concat", list(node.input), axis=-1)
        elif node.domain:
            sys.exit(f"no reference for {node.domain}::{node.op_type}")
    for value in (*graph.input, *graph.output):
        if value.name in ("logits_indices", "logits"):
            value.type.tensor_type.shape.dim[0].dim_param = "rows"
        if "key_values" in value.name:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for opset in model.opset_import:
        if not opset.domain:
            opset.version = min(opset.version, OPSET)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    model.ir_version = min(model.ir_version, IR_VERSION)
    del graph.value_info[:]
    if float32:
        widen(model)
    return model, nodes
