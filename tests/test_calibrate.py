"""Statistics of one layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from enginesmith.convert.models.forward import LayerForward
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.statistics.layer import calibrate_layer
from enginesmith.convert.statistics.wanted import Wanted


def test_a_pass_that_stays_sees_the_same_and_moves_nothing(tiny: Callable[..., Path]) -> None:
    source = Source(tiny())
    forward = LayerForward(source.model, 24, torch.float32, torch.device("cpu"))
    forward.load(source.layer(0))
    hidden = torch.randn(4, 24, source.model.hidden_size, generator=torch.Generator().manual_seed(0))
    before, seen, done = hidden.clone(), [], []
    for stay in (True, False):
        assert torch.equal(hidden, before)
        wanted = Wanted(gram=True, ranges=True, cache=True)
        seen.append(calibrate_layer(forward, hidden, source.model, wanted, 0, 2, done.append, stay))
    assert not torch.equal(hidden, before)
    assert done == [48] * 4
    stayed, moved = seen
    for name, inputs in moved.inputs.items():
        assert torch.equal(stayed.inputs[name].gram_matrix(), inputs.gram_matrix())
        assert torch.equal(stayed.inputs[name].amax, inputs.amax)
    assert stayed.key_amax is not None
    assert torch.equal(stayed.key_amax, moved.key_amax)
