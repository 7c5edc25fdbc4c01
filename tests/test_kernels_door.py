"""Where references are replaced by kernels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from enginesmith.plugins import kernels

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def forget() -> Any:
    kernels.available.cache_clear()
    kernels.compute_capability.cache_clear()
    yield
    kernels.available.cache_clear()
    kernels.compute_capability.cache_clear()


def test_an_old_gpu_is_left_to_pytorch_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.warns(UserWarning, match="the GPU is of SM 75, kernels need 80"):
        assert not kernels.available(0)
    assert not kernels.available(0)


def test_without_triton_pytorch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="Triton is not installed"):
        assert not kernels.available(0)


def test_kernels_are_launched_on_the_device_of_their_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[object] = []

    class Current:
        def __init__(self, device: object):
            entered.append(device)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(kernels, "behind", lambda x: True)
    monkeypatch.setattr(kernels, "import_module", lambda *_: SimpleNamespace(run=lambda x: "kernel"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", Current)
    run: Any = kernels.beside(lambda x: "reference", "any_triton")
    for index, others in ((0, []), (1, [torch.device("cuda", 1)])):
        assert run(SimpleNamespace(is_cuda=True, device=torch.device("cuda", index))) == "kernel"
        assert entered == others
