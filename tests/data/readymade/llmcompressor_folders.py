"""Pack-quantized folders as llm-compressor writes them.

python llmcompressor_folders.py [TARGET]

Run once with llmcompressor==0.14.0.1, and once with llmcompressor==0.8.1 and compressed-tensors==0.12.2, the last that
spread groups over the channels (actorder "group"); each makes the folders of its version.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs
from datasets import Dataset
from llmcompressor import oneshot
from safetensors.torch import load_file
from shared import LINEAR, SEQUENCES, TOKENS, keep, token_ids, write_source

OLD = metadata.version("llmcompressor").startswith("0.8.")
if OLD:
    from llmcompressor.modifiers.quantization.gptq import GPTQModifier
else:
    from compressed_tensors.quantization import QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier

# name: bits, symmetric, group size, order of activations
FOLDERS: dict[str, tuple[int, bool, int | None, str | None]] = {
    "llmcompressor-w4-symmetric-g64": (4, True, 64, None),
    "llmcompressor-w4-asymmetric-g64-static": (4, False, 64, "static"),
    "llmcompressor-w4-symmetric-g128-weight": (4, True, 128, "weight"),
    "llmcompressor-w8-asymmetric-row": (8, False, None, None),
}
OLD_FOLDERS: dict[str, tuple[int, bool, int | None, str | None]] = {
    "llmcompressor-0.8-w4-symmetric-g64-act-order": (4, True, 64, "group"),
}


def main(target: Path) -> None:
    ids = token_ids()
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    for name, (bits, symmetric, group, order) in (OLD_FOLDERS if OLD else FOLDERS).items():
        weights: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": symmetric, "actorder": order}
        weights |= {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
        groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
        with tempfile.TemporaryDirectory() as folder:
            source, made = write_source(Path(folder, "source"), 2 * (group or 64)), Path(folder, "made")
            oneshot(
                model=str(source),
                dataset=rows,
                recipe=GPTQModifier(config_groups=groups, ignore=["lm_head"]),
                max_seq_length=TOKENS,
                num_calibration_samples=SEQUENCES,
                output_dir=str(made),
            )
            held = dequantized(made, QuantizationArgs(**weights))
            keep(made, target / name, held, "llmcompressor", "compressed-tensors")


def dequantized(folder: Path, settings: QuantizationArgs) -> dict[str, torch.Tensor]:
    """What compressed-tensors makes of a folder, by linear."""
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    linears: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        linear, _, suffix = name.rpartition(".")
        if linear.endswith(LINEAR):
            linears.setdefault(linear, {})[suffix] = tensor
    if OLD:
        return {name: compressor().decompress_weight(held, settings) for name, held in linears.items()}
    scheme = QuantizationScheme(targets=["Linear"], weights=settings)
    return {name: compressor.decompress(held, scheme)["weight"] for name, held in linears.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
