"""Cut folders that tools wrote down to their first layer and 32 tokens, and note what their weights are.

python cut_folders.py FOLDER...      writes one folder each beside this file
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

TOKENS = 32


def e4m3(octets: np.ndarray) -> np.ndarray:
    """What bytes mean as FP8: sign, four bits of exponent, three of mantissa."""
    sign, exponent, mantissa = octets >> 7, (octets >> 3 & 15).astype(int), (octets & 7) / 8
    size = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7))
    return np.where(sign == 1, -size, size)


def dequantized(held: dict[str, torch.Tensor], linear: str) -> np.ndarray:
    """(integer or FP8 value) * scale of its row, group or tensor * factor of its input channel."""
    stored, scale = held[f"{linear}.weight"], held[f"{linear}.weight_scale"].float().numpy()
    weight = stored.view(torch.uint8).numpy()
    if stored.dtype == torch.uint8:
        pairs = np.stack((weight & 15, weight >> 4), 1).reshape(-1, weight.shape[1]).astype(np.int16)
        values = pairs - 16 * (pairs > 7)
    else:
        values = weight.view(np.int8) if stored.dtype == torch.int8 else e4m3(weight)
    values = values.astype(np.float32)
    scale = scale.reshape(1, 1) if scale.size == 1 else scale.reshape(len(values), -1)
    values = values * np.repeat(scale, values.shape[1] // scale.shape[1], 1)
    return values * held.get(f"{linear}.pre_quant_scale", torch.ones(1)).float().numpy()


def cut(folder: Path, to: Path) -> None:
    to.mkdir()
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 1, "vocab_size": TOKENS}
    (to / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if (folder / "hf_quant_config.json").exists():
        (to / "hf_quant_config.json").write_text((folder / "hf_quant_config.json").read_text())
    held = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if ".layers." not in name or ".layers.0." in name:
            cut_here = name in ("lm_head.weight", "model.embed_tokens.weight")
            held[name] = tensor[:TOKENS].clone() if cut_here else tensor
    save_file(held, to / "model.safetensors", {"format": "pt"})
    linears = [name.removesuffix(".weight") for name in held if f"{name}_scale" in held]
    digests = {
        name: hashlib.sha256(dequantized(held, name).astype(np.float32).tobytes()).hexdigest() for name in linears
    }
    (to / "dequantized.json").write_text(json.dumps({"sha256 of float32 weights": digests}, indent=1) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        cut(Path(name), Path(__file__).parent / f"{Path(name).parent.name}-{Path(name).name}".replace("_", "-"))
