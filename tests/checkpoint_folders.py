"""Checkpoints whose statements and tensors tests change, and everything that reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.build import releases
from enginesmith.build.checkpoint_folder import CheckpointFolder
from enginesmith.build.gpus import find
from enginesmith.build.network import rank_nodes
from enginesmith.build.plan import Plan, make_plan
from enginesmith.build.wishes import Wishes
from enginesmith.convert.errors import LINE, InputError
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import structure_problems
from tests.conftest import write_model

WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2}
MANIFEST = "enginesmith.json"


def checkpoint_of(folder: Path, model: dict[str, Any] | None = None, **options: Any) -> Path:
    """A checkpoint folder of a tiny model."""
    source = write_model(folder / "hf", **(model or {}))
    settings = {"calib": str(folder / "ids.safetensors"), "calib_size": 4, "calib_seq_len": 16, **options}
    convert(ConvertOptions(str(source), str(folder / "ck"), **settings))
    return folder / "ck"


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Replace a JSON file by a changed one."""
    content = json.loads(path.read_text())
    change(content)
    path.unlink()
    path.write_text(json.dumps(content))


def state(folder: Path, key: str, value: Any) -> None:
    """Make config.json say something; key may lead into sections ("moe.top_k")."""

    def change(config: dict[str, Any]) -> None:
        *sections, last = key.split(".")
        for name in sections:
            config[name] = config.get(name) or {}
            config = config[name]
        config[last] = value

    rewrite(folder / "config.json", change)


def planned(folder: Path, **given: Any) -> Plan:
    given = {"max_input_len": 16, **given}
    return make_plan(CheckpointFolder(folder), releases.find("1.2.1"), find("A100"), Wishes(given))


def read_by_plugins(folder: Path) -> None:
    checkpoint = CheckpointFolder(folder)
    for rank in range(checkpoint.world_size):
        rank_nodes(checkpoint, rank)


READERS: list[Callable[[Path], object]] = [Checkpoint, planned, read_by_plugins]


def refused(folder: Path, words: str, readers: Sequence[Callable[[Path], object]] = READERS) -> None:
    """verify, build and plugins refuse the checkpoint, each in one short line that names what is wrong."""
    for read in readers:
        with pytest.raises(InputError) as error:
            read(folder)
        line = str(error.value).replace(str(folder), "ck")
        assert words in line
        assert len(line) < LINE
        assert line.isprintable()


def accepted(folder: Path) -> None:
    for read in READERS:
        read(folder)
    assert structure_problems(Checkpoint(folder)) == []


def change(path: Path, name: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace a safetensors file by one in which a tensor is another."""
    tensors = load_file(path)
    tensors[name] = edit(tensors[name])
    path.unlink()
    save_file(tensors, path)
