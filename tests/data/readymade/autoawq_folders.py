"""AWQ folders (GEMM) as AutoAWQ writes them.

python autoawq_folders.py [TARGET]    (pip install autoawq==0.2.9 transformers==4.51.3)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from awq import AutoAWQForCausalLM
from awq.utils.packing_utils import dequantize_gemm
from shared import LINEAR, TOKENS, keep, token_ids, write_source
from transformers import AutoTokenizer

# name: group size
FOLDERS = {"autoawq-g64": 64, "autoawq-g128": 128}


def main(target: Path) -> None:
    for name, group in FOLDERS.items():
        settings = {"w_bit": 4, "q_group_size": group, "zero_point": True, "version": "GEMM"}
        with tempfile.TemporaryDirectory() as folder:
            source, made = write_source(Path(folder, "source"), 2 * group), Path(folder, "made")
            model = AutoAWQForCausalLM.from_pretrained(str(source), device_map="cpu")
            tokenizer = AutoTokenizer.from_pretrained(source)
            calibration = token_ids().tolist()
            model.quantize(tokenizer, settings, calibration, max_calib_seq_len=TOKENS)
            model.save_quantized(str(made))
            keep(made, target / name, dequantized(model.model), "autoawq")


def dequantized(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What AutoAWQ computes with, by linear."""
    linears = {name: module for name, module in model.named_modules() if name.endswith(LINEAR)}
    return {
        name: dequantize_gemm(module.qweight, module.qzeros, module.scales, 4, module.group_size).t()
        for name, module in linears.items()
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
