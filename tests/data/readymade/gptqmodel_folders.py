"""GPTQ and AWQ folders as GPTQModel writes them.

GPTQMODEL_CPU_WORKERS=2 python gptqmodel_folders.py [TARGET]    (pip install gptqmodel==7.7.0)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.quantization import QuantizeConfig
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from shared import LINEAR, keep, token_ids, write_source

PLAIN = {"bits": 4, "group_size": 64, "sym": True, "desc_act": False, "format": "gptq"}
ACT_ORDER = {"desc_act": True, "act_group_aware": False}
FOLDERS: dict[str, dict[str, Any]] = {
    "gptqmodel-w4-symmetric-g64": PLAIN,
    "gptqmodel-w4-asymmetric-g64": {**PLAIN, "sym": False},
    "gptqmodel-w4-asymmetric-g64-v2": {**PLAIN, "sym": False, "format": "gptq_v2"},
    "gptqmodel-w4-symmetric-g64-act-order": {**PLAIN, **ACT_ORDER},
    "gptqmodel-w4-asymmetric-g64-act-order-v2": {**PLAIN, **ACT_ORDER, "sym": False, "format": "gptq_v2"},
    "gptqmodel-w4-symmetric-g64-static-groups": {**PLAIN, **ACT_ORDER, "static_groups": True},
    "gptqmodel-w8-symmetric-g128": {**PLAIN, "bits": 8, "group_size": 128},
    "gptqmodel-w8-symmetric-row": {**PLAIN, "bits": 8, "group_size": -1, "act_group_aware": False},
    "gptqmodel-awq-g64": {**PLAIN, "sym": False, "method": "awq", "format": "gemm"},
    "gptqmodel-awq-symmetric-g64": {**PLAIN, "method": "awq", "format": "gemm"},
}


def main(target: Path) -> None:
    for name, settings in FOLDERS.items():
        with tempfile.TemporaryDirectory() as folder:
            source, made = (
                write_source(Path(folder, "source"), max(128, 2 * settings["group_size"])),
                Path(folder, "made"),
            )
            model = GPTQModel.load(str(source), QuantizeConfig(**settings), device="cpu", dtype=torch.float16)
            model.quantize([{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in token_ids()])
            model.save(str(made))
            keep(made, target / name, dequantized(made), "gptqmodel")


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """What GPTQModel makes of a folder, by linear."""
    model = GPTQModel.load(str(folder), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16).model
    linears = {name: module for name, module in model.named_modules() if name.endswith(LINEAR)}
    return {name: weight(module).t() for name, module in linears.items()}


def weight(module: torch.nn.Module) -> torch.Tensor:
    """[in, out]; the class of AWQ's linears keeps this to itself."""
    if hasattr(module, "dequantize_weight"):
        return module.dequantize_weight()
    return dequantize_gemm(module.qweight, module.qzeros, module.scales, 4, module.group_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
