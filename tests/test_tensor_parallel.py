"""A rank in each process gives what all ranks put together give: in threads here, and under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import enginesmith as es
from enginesmith.convert.errors import InputError
from enginesmith.convert.peers import Peers, started
from enginesmith.convert.prove.proven import ProvenCheckpoint, opened
from enginesmith.convert.prove.verify import measure
from enginesmith.convert.targets.trtllm.formats import SCHEMES
from enginesmith.convert.targets.trtllm.honoured import left_out

from .family_models import MODELS, converted, write_family
from .generating import answered, computed_anew, prompts
from .side_by_side import together
from .test_generate import DECODERS, FAMILY, LLAMA
from .triton_folders import write_tokenizer

IDS = [5, 9, 33, 2, 70, 14, 14, 3, 88, 61, 7, 20]


def logits_of(folder: Path, size: int, dtype: str | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits of all ranks put together, and of each rank."""

    def one(peers: Peers) -> torch.Tensor:
        return computed_anew(ProvenCheckpoint(folder, dtype, peers), IDS)

    return computed_anew(opened(folder, dtype=dtype), IDS), together(size, one)


def apart(whole: torch.Tensor, ranks: list[torch.Tensor]) -> float:
    """How far ranks are from the whole, of its deviation; they must be the same."""
    assert all(torch.equal(rank, ranks[0]) for rank in ranks)
    return float((ranks[0] - whole).square().mean().sqrt() / whole.std())


@pytest.mark.parametrize("quant", [None, *SCHEMES])
def test_every_format(quant: str | None, models: Callable[[str], Path], tmp_path: Path) -> None:
    converted(models(LLAMA), tmp_path / "ck", quant=quant, tp_size=2)
    d = apart(*logits_of(tmp_path / "ck", 2))
    print("APART", quant, d)


@pytest.mark.parametrize("title", MODELS)
def test_every_family(title: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    if FAMILY2[title].mixture is not None or FAMILY2[title].task is not None:
        pytest.skip()
    converted(models(title), tmp_path / "ck", tp_size=2)
    print("APART", title, apart(*logits_of(tmp_path / "ck", 2)), apart(*logits_of(tmp_path / "ck", 2, "float32")))


from enginesmith.convert.models.families import FAMILIES

FAMILY2 = {f.title: f for f in FAMILIES}
