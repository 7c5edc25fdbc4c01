"""Finding what is no number."""

from __future__ import annotations

import pytest
import torch

from enginesmith.convert.numbers import finite as module
from enginesmith.convert.numbers.finite import finite

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_number_in_many(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 5)
    assert finite(torch.tensor([[1.0, -2.0], [0.0, 3.0]]).to(dtype))
    assert finite(torch.empty(0, 4, dtype=dtype))
    wrong = [float("nan"), *([] if dtype == torch.float8_e4m3fn else [float("inf"), -float("inf")])]
    for number in wrong:
        for place in range(12):
            values = torch.arange(12.0)
            values[place] = number
            assert not finite(values.view(3, 4).to(dtype)), (number, place)


def test_integers_are_finite() -> None:
    assert finite(torch.tensor([1, 2], dtype=torch.int8))
    assert finite(torch.tensor([True]))
