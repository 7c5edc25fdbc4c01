"""Quantized Hugging Face folders in each format, from a plain packer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .conftest import TINY, random_weights, write_model
from .test_repack import Tensors, pack, weight

SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_key_value_heads": 4}
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
PART = "model.layers.1.self_attn.k_proj"


class Packed:
    """One linear in float16 scales: unsigned integers [out, in], zeros and scales [out, groups]."""

    def __init__(self, w: torch.Tensor, bits: int, group: int, symmetric: bool, g_idx: torch.Tensor | None = None):
        groups = w.shape[1] // group
        self.bits, self.half = bits, 2 ** (bits - 1)
        self.g_idx = torch.arange(w.shape[1]) // group if g_idx is None else g_idx
        spread = w.abs().max() * torch.ones(w.shape[0], groups)
        draw = torch.Generator().manual_seed(w.shape[0])
        self.scale = (spread / (self.half - 1) * (0.5 + torch.rand(spread.shape, generator=draw))).half()
        shift = torch.randint(-2, 3, spread.shape, generator=draw)
        self.zero = self.half + (torch.zeros_like(shift) if symmetric else shift)
        k = (w / self.scale.float()[:, self.g_idx]).round() + self.zero[:, self.g_idx]
        self.integers = k.clamp(0, 2**bits - 1).long()

    def gptq(self, version: int = 1) -> Tensors:
        return {
            "qweight": pack(self.integers, self.bits).t().contiguous(),
            "qzeros": pack((self.zero - (2 - version)).t(), self.bits),
            "scales": self.scale.t().contiguous(),
            "g_idx": self.g_idx.int(),
        }

    def awq(self) -> Tensors:
        columns = [8 * i + c for i in range(len(self.integers) // 8) for c in AWQ_COLUMNS]
        return {
            "qweight": pack(self.integers.t()[:, columns], 4),
            "qzeros": pack(self.zero.t()[:, columns], 4),
            "scales": self.scale.t().contiguous(),
        }

    def compressed(self, symmetric: bool) -> Tensors:
        tensors = {
            "weight_packed": pack(self.integers, self.bits),
            "weight_scale": self.scale,
            "weight_shape": torch.tensor(self.integers.shape),
        }
        packed_zero = pack(self.zero.t(), self.bits).t().contiguous()
        return tensors if symmetric else tensors | {"weight_zero_point": packed_zero}

    def dequantized(self) -> torch.Tensor:
        return weight(self.integers, self.zero, self.scale, self.g_idx)


def compressed_config(bits: int, group: int, symmetric: bool) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights, "input_activations": None, "targets": ["Linear"]}},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def configuration(kind: str, bits: int, group: int, symmetric: bool) -> dict[str, Any]:
    """The quantization_config that a tool writes."""
    if kind == "awq":
        return {
            "quant_method": "awq", "version": "gemm", "bits": 4, "group_size": group, "zero_point": not symmetric,
            "modules_to_not_convert": None,
        }  # fmt: skip
    if kind == "compressed":
        return compressed_config(bits, group, symmetric)
    stored = {"checkpoint_format": "gptq_v2"} if kind == "gptq_v2" else {}
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": False, **stored}


class Folder:
    """A quantized Hugging Face folder, and the linears that it was packed from."""

    def __init__(self, path: Path, kind: str, bits: int = 4, group: int = 64, symmetric: bool = False, **changes: Any):
        config = {**TINY, **SIZES, **changes}
        self.path, self.linears = path, dict[str, Packed]()
        self.said = configuration(kind, bits, group, symmetric)
        tensors: Tensors = {}
        for name, tensor in random_weights(config).items():
            linear = name.removesuffix(".weight")
            if "_proj" not in name or name.endswith("bias"):
                tensors[name] = tensor
                continue
            packed = Packed(tensor.float(), bits, tensor.shape[1] if group == -1 else group, symmetric)
            self.linears[linear] = packed
            own = packed.awq() if kind == "awq" else packed.gptq(2 if kind == "gptq_v2" else 1)
            own = packed.compressed(symmetric) if kind == "compressed" else own
            tensors |= {f"{linear}.{suffix}": piece for suffix, piece in own.items()}
        write_model(path, tensors, quantization_config=self.said, **{**SIZES, **changes})

    def change(self, **tensors: torch.Tensor | None) -> None:
        """Replace tensors (None removes) of the linear PART, or, with a dot in the name, any."""
        held = load_file(self.path / "model.safetensors")
        for name, tensor in tensors.items():
            full = name if "." in name else f"{PART}.{name}"
            held.pop(full, None)
            if tensor is not None:
                held[full] = tensor
        save_file(held, self.path / "model.safetensors")

    def say(self, **changes: Any) -> None:
        """Change the quantization_config."""
        config = json.loads((self.path / "config.json").read_text())
        config["quantization_config"] = {**self.said, **changes}
        (self.path / "config.json").write_text(json.dumps(config))

    def fused(self, layer: int, *parts: str) -> list[Packed]:
        return [self.linears[f"model.layers.{layer}.{part}"] for part in parts]
