"""GPTQ folders as AutoGPTQ writes them.

python autogptq_folders.py [TARGET]    (pip install auto-gptq==0.7.1 transformers==4.40.2 numpy==1.26.4)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig
from auto_gptq.modeling import _base
from auto_gptq.modeling.llama import LlamaGPTQForCausalLM
from shared import LINEAR, keep, token_ids, write_source
from transformers import AutoModelForCausalLM

FOLDERS: dict[str, dict[str, Any]] = {
    "autogptq-w4-symmetric-g64": {"bits": 4, "group_size": 64, "sym": True, "desc_act": False},
    "autogptq-w4-asymmetric-g64-act-order": {"bits": 4, "group_size": 64, "sym": False, "desc_act": True},
    "autogptq-w4-asymmetric-g64-static-groups": {
        "bits": 4, "group_size": 64, "sym": False, "desc_act": True, "static_groups": True,
    },
    "autogptq-w8-asymmetric-g128": {"bits": 8, "group_size": 128, "sym": False, "desc_act": False},
}  # fmt: skip


def main(target: Path) -> None:
    # What insists on a GPU, though quantizing needs none; so does AutoGPTQForCausalLM.from_pretrained.
    _base.CUDA_0, torch.cuda.synchronize = torch.device("cpu"), lambda: None
    for name, settings in FOLDERS.items():
        with tempfile.TemporaryDirectory() as folder:
            source, made = write_source(Path(folder, "source"), 2 * settings["group_size"]), Path(folder, "made")
            model = AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.float16)
            model = LlamaGPTQForCausalLM(model, False, BaseQuantizeConfig(**settings))
            rows = token_ids()
            model.quantize([{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in rows])
            model.save_quantized(str(made))
            keep(made, target / name, dequantized(made), "auto-gptq")


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """What AutoGPTQ computes with, by linear: each one's outputs for unit vectors."""
    model = AutoGPTQForCausalLM.from_quantized(str(folder), device="cpu", use_triton=False, disable_exllama=True)
    linears = {name: module for name, module in model.model.named_modules() if name.endswith(LINEAR)}
    with torch.inference_mode():
        return {name: module(torch.eye(module.infeatures, dtype=torch.float16)).t() for name, module in linears.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
