"""Folders as others make them, of one layer, in which any detail can be changed before they are written."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from enginesmith.convert.files.shard import BITS

LAYER = "model.layers.0."
ATTENTION, MLP = f"{LAYER}self_attn.", f"{LAYER}mlp."
SIZES = {
    f"{ATTENTION}q_proj": (128, 128), f"{ATTENTION}k_proj": (64, 128), f"{ATTENTION}v_proj": (64, 128),
    f"{ATTENTION}o_proj": (128, 128), f"{MLP}gate_proj": (256, 128), f"{MLP}up_proj": (256, 128),
    f"{MLP}down_proj": (128, 256),
}  # fmt: skip
# The bytes of 0.5.
HALF = {"F32": struct.pack("<f", 0.5), "F16": struct.pack("<e", 0.5), "BF16": struct.pack("<f", 0.5)[2:]}


@dataclass
class Sketch:
    """A folder that is not written yet.

    Attributes:
        tensors: dtype, shape and the bytes of one element, by name.
        beside: hf_quant_config.json; None for none.
    """

    config: dict[str, Any]
    tensors: dict[str, tuple[str, list[int], bytes]] = field(default_factory=dict)
    beside: dict[str, Any] | None = None
    template: bool = True

    @property
    def said(self) -> dict[str, Any]:
        said = self.config["quantization_config"]
        assert isinstance(said, dict)
        return said

    def put(self, name: str, dtype: str, *shape: int, element: bytes | None = None) -> None:
        zero = bytes(BITS[dtype] // 8)
        scale = name.endswith(("scale", "scales"))
        filled = HALF[dtype] if scale and element is None else element or zero
        self.tensors[name] = (dtype, list(shape), filled)

    def number(self, name: str, value: float) -> None:
        """Change the value of a float32 tensor."""
        dtype, shape, _ = self.tensors[name]
        assert dtype == "F32"
        self.tensors[name] = (dtype, shape, struct.pack("<f", value))

    def write(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        if self.beside is not None:
            (folder / "hf_quant_config.json").write_text(json.dumps(self.beside))
        if self.template:
            (folder / "chat_template.jinja").write_text("{{ messages }}")
        header, data = dict[str, Any](), b""
        for name, (dtype, shape, element) in self.tensors.items():
            start, data = len(data), data + element * prod(shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, len(data)]}
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
        return folder


def plain() -> Sketch:
    """A model in floating point."""
    made = Sketch({"architectures": ["LlamaForCausalLM"], "dtype": "float16"})
    for name, (rows, columns) in SIZES.items():
        made.put(f"{name}.weight", "F16", rows, columns)
    for name in ("model.embed_tokens", "lm_head"):
        made.put(f"{name}.weight", "F16", 64, 128)
    for name in (f"{LAYER}input_layernorm", f"{LAYER}post_attention_layernorm", "model.norm"):
        made.put(f"{name}.weight", "F16", 128)
    return made


def stripped(said: dict[str, Any]) -> Sketch:
    made = plain()
    made.config["quantization_config"] = said
    for name in SIZES:
        del made.tensors[f"{name}.weight"]
    return made


def compressed(kind: str) -> Sketch:
    """As llm-compressor writes it: int8, int8_static, int8_asym, fp8, fp8_static, w4, w4_asym or w8."""
    floating, packed = kind.startswith("fp8"), kind.startswith("w")
    static = kind.endswith("static")
    bits = 4 if kind.startswith("w4") else 8
    one_scale = kind == "fp8_static"
    strategy = "group" if bits == 4 else "tensor" if one_scale else "channel"
    weights = {"num_bits": bits, "type": "float" if floating else "int", "strategy": strategy, "dynamic": False}
    weights |= {"symmetric": kind != "w4_asym", "observer": "minmax"} | ({"group_size": 128} if bits == 4 else {})
    inputs = {"num_bits": 8, "type": weights["type"], "strategy": "tensor" if static else "token"}
    inputs |= {"symmetric": kind != "int8_asym", "dynamic": not static}
    stored = "pack-quantized" if packed else "float-quantized" if floating else "int-quantized"
    group = {
        "targets": ["Linear"],
        "format": stored,
        "weights": weights,
        "input_activations": None if packed else inputs,
    }
    made = stripped({
        "quant_method": "compressed-tensors", "format": stored, "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": {"group_0": group}, "sparsity_config": {}, "transform_config": {},
    })  # fmt: skip
    for name, (rows, columns) in SIZES.items():
        if packed:
            groups = columns // 128 if bits == 4 else 1
            made.put(f"{name}.weight_packed", "I32", rows, columns * bits // 32)
            made.put(f"{name}.weight_scale", "F16", rows, groups)
            made.put(f"{name}.weight_shape", "I64", 2)
            if kind == "w4_asym":
                made.put(f"{name}.weight_zero_point", "I32", rows // 8, groups)
        else:
            made.put(f"{name}.weight", "F8_E4M3" if floating else "I8", rows, columns)
            made.put(f"{name}.weight_scale", "F32", *([1] if one_scale else [rows, 1]))
        if static:
            made.put(f"{name}.input_scale", "F32", 1)
    return made


def modelopt(algo: str, group: int = 128) -> Sketch:
    """As ModelOpt exports it."""
    listed = ["lm_head", "model.embed_tokens"]
    made = stripped({"quant_method": "modelopt", "quant_algo": algo, "ignore": listed})
    said: dict[str, Any] = {"quant_algo": algo, "kv_cache_quant_algo": None, "exclude_modules": listed}
    if algo == "W4A16_AWQ":
        said |= {"group_size": group, "has_zero_point": False, "pre_quant_scale": True}
    made.beside = {"producer": {"name": "modelopt", "version": "0.47.0"}, "quantization": said}
    for name, (rows, columns) in SIZES.items():
        if algo == "W4A16_AWQ":
            made.put(f"{name}.weight", "U8", rows // 2, columns)
            made.put(f"{name}.weight_scale", "F32", rows, columns // group)
        else:
            made.put(f"{name}.weight", "F8_E4M3" if "FP8" in algo else "I8", rows, columns)
            made.put(f"{name}.weight_scale", "F32", *([] if algo == "FP8" else [rows]))
        if algo in ("FP8", "W8A8_SQ_PER_CHANNEL"):
            made.put(f"{name}.input_scale", "F32")
        if algo == "W8A8_SQ_PER_CHANNEL" or (algo == "W4A16_AWQ" and name.endswith(("o_proj", "down_proj"))):
            made.put(f"{name}.pre_quant_scale", "F16", columns)
    return made


def gptq(group: int = 128) -> Sketch:
    """As GPTQModel writes it, symmetric."""
    made = stripped({"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": True})
    for name, (rows, columns) in SIZES.items():
        made.put(f"{name}.qweight", "I32", columns // 8, rows)
        made.put(f"{name}.qzeros", "I32", columns // group, rows // 8, element=b"\x77" * 4)
        made.put(f"{name}.scales", "F16", columns // group, rows)
        made.put(f"{name}.g_idx", "I32", columns)
    return made


def awq(zeros: bytes = b"\x88" * 4) -> Sketch:
    """As AutoAWQ writes it; eight zero points a word."""
    said = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
    made = stripped(said)
    for name, (rows, columns) in SIZES.items():
        made.put(f"{name}.qweight", "I32", columns, rows // 8)
        made.put(f"{name}.qzeros", "I32", columns // 128, rows // 8, element=zeros)
        made.put(f"{name}.scales", "F16", columns // 128, rows)
    return made


def engines() -> Sketch:
    """A TensorRT-LLM checkpoint's config.json."""
    return Sketch({"architecture": "LlamaForCausalLM", "dtype": "float16", "quantization": {"quant_algo": "FP8"}})
