"""The same jobs done by llm-compressor.

Run in an environment of its own (pip install llmcompressor==0.14.0.1 torch):

python benchmarks/peer_llmcompressor.py MODEL_DIR gptq|smoothquant CALIBRATION HELD_OUT [GROUP_SIZE]

gptq: W4A16, symmetric groups of 64. smoothquant: SmoothQuant at 0.8 as its examples have it, then GPTQ, W8A8 with a
scale a row and a scale a token. CALIBRATION and HELD_OUT are safetensors files with input_ids; everything is float32.
Prints, as JSON, the seconds of oneshot (loading left out) and the perplexity of the model it leaves, which computes
with quantized weights and activations.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from perplexity import perplexity
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def recipe(job: str, group_size: int) -> list[Any]:
    if job == "smoothquant":
        return [SmoothQuantModifier(smoothing_strength=0.8), GPTQModifier(scheme="W8A8", ignore=["lm_head"])]
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group_size}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return [GPTQModifier(config_groups=groups, ignore=["lm_head"])]


def main(model_dir: str, job: str, calibration: str, held_out: str, group_size: str = "64") -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    ids = load_file(calibration)["input_ids"]
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    start = time.monotonic()
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(model_dir),
        dataset=rows,
        recipe=recipe(job, int(group_size)),
        max_seq_length=ids.shape[1],
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
    )
    seconds = time.monotonic() - start
    print(json.dumps({"seconds": seconds, "perplexity": perplexity(model, load_file(held_out)["input_ids"])}))


if __name__ == "__main__":
    if len(sys.argv) < 5 or sys.argv[2] not in ("gptq", "smoothquant"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
