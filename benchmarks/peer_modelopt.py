"""The same SmoothQuant job done by NVIDIA ModelOpt: calibrate, quantize, export a TensorRT-LLM checkpoint.

Run in an environment of its own (pip install nvidia-modelopt==0.47.0 torch 'transformers<5' safetensors):

python benchmarks/peer_modelopt.py MODEL_DIR OUTPUT_DIR [float32|bfloat16]

Prints the seconds of quantization and of export, loading left out.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_tensorrt_llm_checkpoint
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
    return ids[: SEQUENCES * TOKENS]


def main(model_dir: str, output_dir: str, dtype: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=getattr(torch, dtype)).eval()
    batches = token_ids(Path(model_dir)).view(-1, BATCH, TOKENS)

    def forward(module: torch.nn.Module) -> None:
        for batch in batches:
            module(batch)

    start = time.monotonic()
    with torch.inference_mode():
        mtq.quantize(model, mtq.INT8_SMOOTHQUANT_CFG, forward)
    quantized = time.monotonic()
    with torch.inference_mode():
        kind = getattr(torch, "float16" if dtype == "float32" else dtype)
        export_tensorrt_llm_checkpoint(model, "llama", kind, output_dir, inference_tensor_parallel=1)
    end = time.monotonic()
    print(f"quantize {quantized - start:.1f} s, export {end - quantized:.1f} s, total {end - start:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "float32")
