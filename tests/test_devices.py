"""One of several GPUs, by name: the one that everything is launched on."""

from __future__ import annotations

import pytest
import torch

import enginesmith as es
from enginesmith.convert.device import pick_device


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two GPUs that are not there; those that became the current one."""
    made: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    return made


def test_a_gpu_by_number_becomes_the_current_one(current: list[torch.device]) -> None:
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert current == [torch.device("cuda", 1)]


@pytest.mark.parametrize("name", ["auto", "cuda", "cpu"])
def test_no_number_changes_nothing(name: str, current: list[torch.device]) -> None:
    assert pick_device(name).index is None
    assert not current


def test_a_number_that_is_not_there_is_refused(current: list[torch.device]) -> None:
    with pytest.raises(es.InputError, match="--device cuda:2: torch finds 2 CUDA devices, from cuda:0 on"):
        pick_device("cuda:2")
    assert not current
