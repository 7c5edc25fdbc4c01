"""Families beside the checkpoints that TensorRT-LLM 0.16's own converters wrote of them, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions

from .conftest import DATA

FOLDER = DATA / "golden_families"


def cases() -> list[Any]:
    found = []
    for index in sorted(FOLDER.glob("*/index.json")):
        for case in json.loads(index.read_text())["cases"]:
            if case["quant_algo"] in (None, "W8A16") and "upstream_error" not in case:
                found.append(pytest.param(index.parent, case, id=f"{index.parent.name}-{case['name']}"))
    return found


@pytest.mark.parametrize(("folder", "case"), cases())
def test_equals_upstream(folder: Path, case: dict[str, Any], tmp_path: Path) -> None:
    options = {"quant": case["quant_algo"], "tp_size": case["tp"], "pp_size": case["pp"], "dtype": "float16"}
    convert(ConvertOptions(str(folder / "hf"), str(tmp_path / "ck"), **options))
    theirs = folder / case["name"]
    for file in sorted(theirs.glob("rank*.safetensors")):
        ours, wanted = load_file(tmp_path / "ck" / file.name), load_file(file)
        assert ours.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert ours[name].dtype == tensor.dtype, name
            assert torch.equal(ours[name], tensor), name
    written = json.loads((tmp_path / "ck" / "config.json").read_text())
    said = json.loads((theirs / "config.json").read_text())
    assert within(written, said)
    assert set(written) == set(said) or "moe_tp_size" not in said["mapping"]  # which a script wrote, not the class


def within(written: dict[str, Any], said: dict[str, Any]) -> bool:
    """Whether everything that upstream's file says is in ours; its scripts leave out what the class fills in."""
    return all(
        within(written[key], value) if isinstance(value, dict) else written[key] == value for key, value in said.items()
    )
