"""Whole layers of every format with kernels in the plugins' place: the wiring of formats, runtime and kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from enginesmith.convert.prove.layers import computed
from enginesmith.convert.prove.proven import ProvenCheckpoint
from enginesmith.plugins import kernels

from .conftest import ALGORITHMS
from .family_models import converted as converted_family
from .family_models import write_family
from .test_formats import FORMATS, WIDE, group_size

Tiny = Callable[..., Path]
Converted = Callable[..., ProvenCheckpoint]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def hidden_states(checkpoint: ProvenCheckpoint, ids: torch.Tensor, device: torch.device, checks: bool) -> torch.Tensor:
    """Behind all layers, float32 on the CPU."""
    runtime = checkpoint.runtime(ids.shape[1], device)
    runtime.checks = checks
    hidden = checkpoint.embedding().to(device)(ids.to(device))
    for index in range(checkpoint.model.num_hidden_layers):
        hidden = computed(runtime, index, checkpoint.executed(index, device).prepared(), hidden)
    return hidden.float().cpu()


def assert_near(got: torch.Tensor, wanted: torch.Tensor) -> None:
    apart = (got - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert float(apart.median()) < 2e-3
    assert float(apart.max()) < 3e-2


@pytest.mark.parametrize(("tokens", "checks"), [(1, False), (3, True), (5, False)])
@pytest.mark.parametrize("algo", [*ALGORITHMS, *FORMATS])
def test_kernels_compute_what_references_do(
    algo: str, tokens: int, checks: bool, tiny: Tiny, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused where nobody looks between, and operation by operation."""
    checkpoint = converted(tiny(**WIDE | {"num_hidden_layers": 1}), quant=algo, group_size=group_size(algo))
    ids = torch.randint(101, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    wanted = hidden_states(checkpoint, ids, torch.device("cpu"), checks=True)
    if DEVICE.type == "cpu":
        monkeypatch.setattr(kernels, "behind", lambda x: True)
    assert_near(hidden_states(checkpoint, ids, DEVICE, checks), wanted)


@pytest.mark.parametrize("algo", [ALGORITHMS[-1], *FORMATS])
def test_values_in_float32(algo: str, tiny: Tiny, converted: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of packed integers are for half precision; all others take what comes."""
    folder = converted(tiny(**WIDE | {"num_hidden_layers": 1}), quant=algo, group_size=group_size(algo)).folder
    checkpoint, ids = ProvenCheckpoint(folder, "float32"), torch.tensor([[3, 14, 15]])
    wanted = hidden_states(checkpoint, ids, torch.device("cpu"), checks=True)
    if DEVICE.type == "cpu":
        monkeypatch.setattr(kernels, "behind", lambda x: True)
    assert_near(hidden_states(checkpoint, ids, DEVICE, False), wanted)


@pytest.mark.parametrize("quant", ["W8A16", "W4A16_AWQ", "FP8"])
def test_experts_that_no_token_is_sent_to(quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token and two of four experts: kernels of no rows for the others."""
    model = write_family(tmp_path / "hf", "Mixtral", num_hidden_layers=1)
    converted_family(model, tmp_path / "ck", quant=quant)
    checkpoint, ids = ProvenCheckpoint(tmp_path / "ck"), torch.tensor([[3]])
    wanted = hidden_states(checkpoint, ids, torch.device("cpu"), checks=True)
    if DEVICE.type == "cpu":
        monkeypatch.setattr(kernels, "behind", lambda x: True)
    assert_near(hidden_states(checkpoint, ids, DEVICE, False), wanted)
