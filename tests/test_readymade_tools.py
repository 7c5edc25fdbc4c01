"""Folders that real tools wrote (data/readymade): repacked to the weights that the tool itself computes with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import measure, structure_problems
from enginesmith.convert.sources.folder import Source

from .conftest import DATA

FOLDERS = sorted(path.parent for path in (DATA / "readymade").glob("*/dequantized.json"))
NAMES = [folder.name for folder in FOLDERS]
# In the names of folders whose groups lie spread over the channels.
SPREAD = "act-order"
Converted = Callable[..., Checkpoint]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each linear's weight, float16 [out, in], as the tool dequantizes it."""
    noted: dict[str, str] = json.loads((folder / "dequantized.json").read_text())["sha256 of float16 weights"]
    return noted


def digest(weight: torch.Tensor) -> str:
    return hashlib.sha256(weight.half().contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_the_source_reads_what_the_tool_computes_with(folder: Path) -> None:
    source = Source(folder)
    assert source.packed == digests(folder).keys()
    assert {name: digest(source.quantized(name).dequantize()) for name in source.packed} == digests(folder)


def joined_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """(integers - zero) * scale of each of the source's linears, float32 [out, in], from what a checkpoint stores."""
    weights, model, held = {}, checkpoint.model, checkpoint.layer(0)
    for linear in model.family.linears:
        scale = held[f"{linear.name}.weights_scaling_factor"].t().float()
        stored = held.get(f"{linear.name}.zero", torch.zeros_like(scale.t())).t().float()
        zero = -(stored / scale).round()
        grouped = held[f"{linear.name}.weight"].float().unflatten(1, (scale.shape[1], -1))
        whole = ((grouped - zero[..., None]) * scale[..., None]).flatten(1)
        for part, piece in zip(linear.parts, whole.split(model.out_features(linear.name)), strict=True):
            weights[f"{model.family.layer.format(i=0)}{part}"] = piece
    return weights


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_the_checkpoint_holds_it(folder: Path, tmp_path: Path, converted: Converted) -> None:
    if SPREAD in folder.name:
        with pytest.raises(InputError, match=r"act-order .* --requantize"):
            converted(folder, calib="pydoc")
        return
    checkpoint = converted(folder, calib="pydoc")
    assert structure_problems(checkpoint) == []
    assert {name: digest(weight) for name, weight in joined_weights(checkpoint).items()} == digests(folder)
    ids = tmp_path / "ids.safetensors"
    save_file({"input_ids": torch.randint(32, (4, 24), generator=torch.Generator().manual_seed(0))}, ids)
    assert measure(checkpoint, folder, str(ids), 4, 24).kl < 1e-4
