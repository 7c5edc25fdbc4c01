"""A compressed-tensors folder by llm-compressor; runtimes.py calls it.

Run in an environment of its own (pip install llmcompressor==0.14.0 torch):

python benchmarks/runtimes_llmcompressor.py MODEL_DIR JOB CALIBRATION SEQUENCES OUTPUT_DIR

JOB is one of RECIPES. CALIBRATION is a safetensors file with input_ids, of which the first SEQUENCES are used.
Everything is float32. The modifiers are as llm-compressor's examples have them; groups are of 64, for its W4A16 has
groups of 128, which it refuses where they do not divide the channels. Prints, as JSON, the seconds of oneshot (loading
and writing left out).
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": True}
TENSOR = {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": True, "dynamic": False}


def group(weights: dict[str, Any], activations: dict[str, Any] | None = None) -> dict[str, Any]:
    """A scheme that has no name."""
    linears = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {"ignore": ["lm_head"], "config_groups": {"group_0": linears}}


def named(scheme: str) -> dict[str, Any]:
    return {"ignore": ["lm_head"], "scheme": scheme, "targets": "Linear"}


def smoothed() -> SmoothQuantModifier:
    return SmoothQuantModifier(smoothing_strength=0.8)


RECIPES: dict[str, Callable[[], list[Any]]] = {
    "w8a8-gptq": lambda: [smoothed(), GPTQModifier(**named("W8A8"))],
    "w8a8": lambda: [smoothed(), QuantizationModifier(**named("W8A8"))],
    "w8a8-static": lambda: [smoothed(), QuantizationModifier(**group(INT8, TENSOR))],
    "w4a16-gptq": lambda: [GPTQModifier(**group(INT4))],
    "w4a16-awq": lambda: [AWQModifier(), QuantizationModifier(**group(INT4))],
    "w8a16": lambda: [QuantizationModifier(**group(INT8))],
    "fp8": lambda: [QuantizationModifier(**named("FP8"))],
    "fp8-dynamic": lambda: [QuantizationModifier(**named("FP8_DYNAMIC"))],
}


def leave_unpinned() -> None:
    """llm-compressor 0.14's AWQ pins its activations, which torch refuses where there is no accelerator."""
    if not torch.accelerator.is_available():
        torch.Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[method-assign,assignment]


def main(model_dir: str, job: str, calibration: str, sequences: str, output_dir: str) -> None:
    leave_unpinned()
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    ids = load_file(calibration)["input_ids"][: int(sequences)]
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    start = time.monotonic()
    oneshot(
        model=model,
        dataset=rows,
        recipe=RECIPES[job](),
        max_seq_length=ids.shape[1],
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
    )
    seconds = time.monotonic() - start
    model.save_pretrained(output_dir, save_compressed=True)
    for file in Path(model_dir).glob("tokenizer*.json"):
        shutil.copy(file, output_dir)
    print(json.dumps({"quantizing_seconds": seconds}))


if __name__ == "__main__":
    if len(sys.argv) != 6 or sys.argv[2] not in RECIPES:
        sys.exit(__doc__)
    main(*sys.argv[1:])
