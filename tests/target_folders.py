"""Conversions of one small model for every target, and what their folders hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.prove.folder import QuantizedFolder
from enginesmith.convert.prove.layers import computed

TARGETS = Path(__file__).parent / "data" / "targets"
BASE, CPU = TARGETS / "base", torch.device("cpu")
IDS = load_file(TARGETS / "ids.safetensors")
INDEX: dict[str, Any] = json.loads((TARGETS / "index.json").read_text())["folders"]
# (target, quant, further options) -> the peer's folder of the same scheme.
SAME: dict[tuple[str, str, tuple[tuple[str, Any], ...]], str] = {
    ("compressed-tensors", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", ()): "compressed/w8a8_dynamic_smoothquant",
    ("compressed-tensors", "W8A8_SQ_PER_CHANNEL", ()): "compressed/w8a8_static",
    ("compressed-tensors", "W4A16_AWQ", ()): "compressed/w4a16_g128_sym",
    ("compressed-tensors", "W4A16_GPTQ", (("symmetric", True),)): "compressed/w4a16_g128_sym",
    ("compressed-tensors", "W4A16_GPTQ", ()): "compressed/w4a16_g128_asym",
    ("compressed-tensors", "W4A16_ASYM", (("group_size", 64),)): "compressed/w4a16_g64_asym",
    ("compressed-tensors", "W8A16", ()): "compressed/w8a16_channel",
    ("compressed-tensors", "FP8", ()): "compressed/fp8_static",
    ("compressed-tensors", "FP8", (("kv_cache", "FP8"),)): "compressed/fp8_static_kv",
    ("compressed-tensors", "FP8_DYNAMIC", ()): "compressed/fp8_dynamic",
    ("modelopt", "FP8", ()): "modelopt/fp8",
    ("modelopt", "FP8", (("kv_cache", "FP8"),)): "modelopt/fp8_kv",
    ("modelopt", "FP8_PER_CHANNEL_PER_TOKEN", ()): "modelopt/fp8_pc_pt",
    ("modelopt", "W4A16_AWQ", ()): "modelopt/int4_awq_g128",
    ("edge", "W8A8_SQ_PER_CHANNEL", ()): "modelopt/int8_sq",
    ("edge", "FP8", (("kv_cache", "FP8"),)): "modelopt/fp8_kv",
    ("edge", "W4A16_AWQ", ()): "modelopt/int4_awq_g128",
    ("edge", "W4A16_GPTQ", (("symmetric", True),)): "gptq_sym_g128",
}


def calibration(folder: Path) -> Path:
    """The tokens that the peers calibrated on, where --calib reads them."""
    path = folder / "calibration.safetensors"
    save_file({"input_ids": IDS["calibration_ids"].long()}, path)
    return path


def made(target: str, quant: str, folder: Path, **options: Any) -> Path:
    """A conversion of the base model."""
    folder.mkdir(exist_ok=True)
    out = folder / "out"
    text = str(calibration(folder))
    options = {"model_dir": str(BASE), "calib": text, "calib_size": 16, "calib_seq_len": 64} | options
    convert(ConvertOptions(output_dir=str(out), target=(target,), quant=quant, **options))
    return out


@torch.inference_mode()
def logits(folder: Path, reader: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What a folder computes from the tokens, float32 [sequences, tokens, vocabulary]."""
    opened, ids = QuantizedFolder(folder, reader, dtype), IDS["token_ids"].long()
    runtime, hidden = opened.runtime(ids.shape[1], CPU), opened.embedding()(ids)
    for index in range(opened.model.num_hidden_layers):
        hidden = computed(runtime, index, opened.executed(index, CPU), hidden)
    head = opened.head(CPU).map(torch.Tensor.float)
    return torch.stack([runtime.logits(one, head) for one in hidden])


def forms(folder: Path) -> dict[str, tuple[torch.dtype, list[int]]]:
    """Dtype and shape of every tensor of a folder."""
    held = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    return {name: (tensor.dtype, list(tensor.shape)) for name, tensor in held.items()}
