"""The same jobs done by NVIDIA ModelOpt.

Run in an environment of its own (pip install nvidia-modelopt==0.47.0 torch 'transformers<5' safetensors):

python benchmarks/peer_modelopt.py MODEL_DIR smoothquant OUTPUT_DIR [float32|bfloat16]
    INT8 SmoothQuant and the export of a TensorRT-LLM checkpoint, on 64 sequences of MODEL_DIR/ids.safetensors if it is
    there, else of the first half of Python's reference topics. Prints the seconds of both, loading left out.
python benchmarks/peer_modelopt.py MODEL_DIR awq CALIBRATION HELD_OUT [GROUP_SIZE]
    INT4_AWQ_CFG in groups of 64, or of 128 as ModelOpt has it, on the tokens in CALIBRATION; prints, as JSON, the
    seconds and what peers.py wants to know. Where 128 does not divide the channels, the last group is the shorter.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_tensorrt_llm_checkpoint
from perplexity import perplexity
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

SEQUENCES, TOKENS, BATCH = 64, 512, 4


def token_ids(model_dir: Path) -> torch.Tensor:
    """Those beside the model, or the first half of Python's reference topics."""
    ready = model_dir / "ids.safetensors"
    if ready.exists():
        return load_file(ready)["input_ids"][:SEQUENCES, :TOKENS].contiguous()
    text = "\n\n".join(topics[key] for key in sorted(topics))
    ids = AutoTokenizer.from_pretrained(model_dir)(text[: len(text) // 2], return_tensors="pt").input_ids[0]
    return ids[: SEQUENCES * TOKENS].view(-1, TOKENS)


def quantize(model: torch.nn.Module, config: dict, ids: torch.Tensor) -> float:
    """Seconds of calibrating on ids [sequences, tokens] and quantizing."""
    start = time.monotonic()
    with torch.inference_mode():
        mtq.quantize(model, config, lambda module: [module(batch) for batch in ids.split(BATCH)])
    return time.monotonic() - start


def smoothquant(model_dir: str, output_dir: str, dtype: str = "float32") -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=getattr(torch, dtype)).eval()
    quantized = quantize(model, mtq.INT8_SMOOTHQUANT_CFG, token_ids(Path(model_dir)))
    start = time.monotonic()
    with torch.inference_mode():
        kind = getattr(torch, "float16" if dtype == "float32" else dtype)
        export_tensorrt_llm_checkpoint(model, "llama", kind, output_dir, inference_tensor_parallel=1)
    exported = time.monotonic() - start
    print(f"quantize {quantized:.1f} s, export {exported:.1f} s, total {quantized + exported:.1f} s")


def awq(model_dir: str, calibration: str, held_out: str, group_size: str = "64") -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=torch.float32).eval()
    config = copy.deepcopy(mtq.INT4_AWQ_CFG)
    for entry in config["quant_cfg"]:
        if "block_sizes" in entry.get("cfg", {}):
            entry["cfg"]["block_sizes"][-1] = int(group_size)
    seconds = quantize(model, config, load_file(calibration)["input_ids"])
    found = perplexity(model, load_file(held_out)["input_ids"])
    print(json.dumps({"seconds": seconds, "perplexity": found}))


if __name__ == "__main__":
    jobs = {"smoothquant": smoothquant, "awq": awq}
    if len(sys.argv) < 4 or sys.argv[2] not in jobs:
        sys.exit(__doc__)
    jobs[sys.argv[2]](sys.argv[1], *sys.argv[3:])
