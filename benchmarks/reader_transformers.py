"""What transformers' own compressed-tensors reader makes of a folder: nothing lost, and its perplexity.

Run in an environment of its own (pip install torch==2.13.0 transformers==5.17.0 compressed-tensors==0.19.0 accelerate):

python benchmarks/reader_transformers.py MODEL_DIR IDS --save LOGITS
python benchmarks/reader_transformers.py FOLDER IDS [--reference LOGITS] [--dtype bfloat16]

IDS is a safetensors file with input_ids [chunks, tokens]. The first line keeps the float model's logits, the second
tells how far from them the folder's are. Weights are dequantized and activations rounded by the reader's code. A tensor
that is missing, unexpected or of another shape, and a linear that is quantized in the folder and not in the model, end
it with exit code 1. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from logits import measured
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

LOST = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs", "conversion_errors")
QUANTIZED = ("weight_scale", "weight_packed", "qweight")


def quantized_in(folder: Path) -> set[str]:
    """Names of the linears that the files of a folder quantize."""
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names |= {key.rpartition(".")[0] for key in tensors.keys() if key.endswith(QUANTIZED)}  # noqa: SIM118
    return names


def read(folder: Path, dtype: str) -> tuple[torch.nn.Module, int, int]:
    """(the model, how many of its linears are quantized, how many there are)."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), output_loading_info=True, local_files_only=True
    )
    lost = {key: sorted(map(str, info[key]))[:5] for key in LOST if info.get(key)}
    linears = {name: part for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    quantized = {name for name, part in linears.items() if getattr(part, "quantization_scheme", None)}
    if differing := quantized_in(folder) ^ quantized:
        lost["quantized only in the folder or only in the model"] = sorted(differing)[:5]
    if lost:
        sys.exit(f"{folder}: {json.dumps(lost)}")
    return model.eval(), len(quantized), len(linears)


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    model, quantized, linears = read(given.folder, given.dtype)
    with torch.inference_mode():
        found = measured(
            lambda chunk: model(chunk[None], use_cache=False).logits[0],
            load_file(given.ids)["input_ids"],
            given.reference,
            given.save,
        )
    print(json.dumps({"quantized_linears": quantized, "linears": linears} | found))


if __name__ == "__main__":
    main()
