"""Launches of what was compiled before: the same kernel for the same kind of arguments, and for no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from triton.tools.tensor_descriptor import TensorDescriptor

from enginesmith.plugins import launches
from enginesmith.plugins.launches import Launches

HELD = torch.zeros(64, dtype=torch.float16)
WIDE = torch.zeros(32, 32, dtype=torch.int8)


class Kernel:
    """As triton.jit makes one: it compiles whenever it is launched by itself."""

    arg_names = ("x", "n", "B", "C")

    def __init__(self) -> None:
        self.compiled, self.launched = list[Any](), list[Any]()

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **named: Any) -> Any:
            self.compiled.append((grid, arguments, named))
            return Compiled(self, len(self.compiled))

        return launch


class Compiled:
    def __init__(self, kernel: Kernel, number: int):
        self.kernel, self.number = kernel, number

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments: self.kernel.launched.append((self.number, grid[:3], arguments))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> tuple[Kernel, Launches]:
    monkeypatch.setattr(launches, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    kernel = Kernel()
    return kernel, Launches(kernel)


def test_the_second_launch_passes_constants_in_their_order(made: tuple[Kernel, Launches]) -> None:
    kernel, again = made
    for grid in ((3,), (5, 2)):
        again[grid](HELD, 48, C="c", B=7, num_warps=4)
    assert kernel.compiled == [((3,), (HELD, 48), {"C": "c", "B": 7, "num_warps": 4})]
    assert kernel.launched == [(1, (5, 2, 1), (HELD, 48, 7, "c"))]


@pytest.mark.parametrize(
    ("first", "second", "options"),
    [
        ((HELD, 48), (HELD[1:], 48), {}),
        ((HELD, 48), (HELD.bfloat16(), 48), {}),
        ((HELD, 48), (HELD, 47), {}),
        ((HELD, 47), (HELD, 1), {}),
        ((HELD, 48), (HELD, 2**31), {}),
        ((HELD, 48), (None, 48), {}),
        ((HELD, 48), (HELD, 48), {"num_warps": 8}),
        ((HELD, 0.5), (HELD, 48), {}),
        (
            (TensorDescriptor.from_tensor(WIDE, [1, 16]), 48),
            (TensorDescriptor.from_tensor(WIDE, [16, 32]), 48),
            {},
        ),
    ],
)
def test_what_triton_compiles_for_is_a_kind(
    first: tuple[Any, ...], second: tuple[Any, ...], options: dict[str, Any], made: tuple[Kernel, Launches]
) -> None:
    kernel, again = made
    again[1,](*first, B=7, C=1, num_warps=4)
    again[1,](*second, **{"B": 7, "C": 1, "num_warps": 4} | options)
    again[1,](*first, B=7, C=1, num_warps=4)
    assert len(kernel.compiled) == 2
    assert [number for number, *_ in kernel.launched] == [1]


@pytest.mark.parametrize("other", [(HELD[8:], 48), (HELD, 64), (HELD[16:], 2**30)])
def test_what_it_does_not_is_none(other: tuple[Any, ...], made: tuple[Kernel, Launches]) -> None:
    kernel, again = made
    again[1,](HELD, 48, B=7, C=1)
    again[1,](*other, B=7, C=1)
    assert len(kernel.compiled) == len(kernel.launched) == 1


def test_every_device_has_its_own(made: tuple[Kernel, Launches], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, again = made
    for device in (0, 1, 0):
        monkeypatch.setattr(torch.cuda, "current_device", lambda device=device: device)
        again[1,](HELD, 48, B=7, C=1)
    assert len(kernel.compiled) == 2
    assert [number for number, *_ in kernel.launched] == [1]
