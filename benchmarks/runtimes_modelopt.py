"""A unified Hugging Face folder by NVIDIA ModelOpt; runtimes.py calls it.

Run in an environment of its own (pip install nvidia-modelopt==0.47.0 torch transformers==5.24.0 accelerate requests):

python benchmarks/runtimes_modelopt.py MODEL_DIR JOB CALIBRATION SEQUENCES OUTPUT_DIR

JOB is one of CONFIGS. CALIBRATION is a safetensors file with input_ids, of which the first SEQUENCES are used.
Everything is float32 until the folder, which is float16, as Edge-LLM refuses others; AWQ has groups of 64. Prints, as
JSON, the seconds of mtq.quantize (loading and writing left out).
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
import time
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

GROUP_SIZE, BATCH = 64, 4
CONFIGS = {"int8-smoothquant": "INT8_SMOOTHQUANT_CFG", "int4-awq": "INT4_AWQ_CFG", "fp8": "FP8_DEFAULT_CFG"}
SCALES = ("weight_scale", "input_scale")


def narrow(folder: Path) -> None:
    """Make what is not quantized float16: the export leaves it as the model is, whatever dtype it is given."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float32 and not name.endswith(SCALES):
            tensors[name] = tensor.half()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}, indent=2), encoding="utf-8")


def main(model_dir: str, job: str, calibration: str, sequences: str, output_dir: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    config = copy.deepcopy(getattr(mtq, CONFIGS[job]))
    for entry in config["quant_cfg"]:
        if "block_sizes" in (entry.get("cfg") or {}):
            entry["cfg"]["block_sizes"][-1] = GROUP_SIZE
    batches = load_file(calibration)["input_ids"][: int(sequences)].split(BATCH)

    def calibrate(module: torch.nn.Module) -> None:
        for batch in batches:
            module(batch)

    start = time.monotonic()
    with torch.inference_mode():
        mtq.quantize(model, config, calibrate)
        seconds = time.monotonic() - start
        export_hf_checkpoint(model, dtype=torch.float16, export_dir=output_dir)
    narrow(Path(output_dir))
    for file in Path(model_dir).glob("tokenizer*.json"):
        shutil.copy(file, output_dir)
    print(json.dumps({"quantizing_seconds": seconds}))


if __name__ == "__main__":
    if len(sys.argv) != 6 or sys.argv[2] not in CONFIGS:
        sys.exit(__doc__)
    main(*sys.argv[1:])
