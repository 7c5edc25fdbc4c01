"""Half a Gram matrix must say all that a whole one does."""

from __future__ import annotations

import pytest
import torch

from enginesmith.convert.numbers.gram import PANELS, add_inputs, mirror, output_energy, panels


@pytest.mark.parametrize("multiple", [1, 128])
@pytest.mark.parametrize("channels", [1, PANELS - 1, PANELS, 100, 192, 4096, 14336])
def test_panels_cover_every_channel_once(channels: int, multiple: int) -> None:
    found = list(panels(channels, multiple))
    assert [channel for start, end in found for channel in range(start, end)] == list(range(channels))
    assert all(start % multiple == 0 for start, _ in found)
    assert len(found) <= PANELS


@pytest.mark.parametrize("channels", [5, 100, 192])
def test_panels_add_up_to_the_whole_matrix(channels: int) -> None:
    x = torch.randn(300, channels, generator=torch.Generator().manual_seed(0))
    gram = torch.zeros(channels, channels)
    for piece in x.split(128):
        add_inputs(gram, piece)
    torch.testing.assert_close(mirror(gram), x.t() @ x, rtol=1e-5, atol=1e-3)
    assert torch.equal(mirror(gram.clone()), gram)


@pytest.mark.parametrize("channels", [5, 100, 192])
def test_output_energy_is_that_of_the_outputs(channels: int) -> None:
    draw = torch.Generator().manual_seed(0)
    x, rows = torch.randn(300, channels, generator=draw), torch.randn(40, channels, generator=draw)
    torch.testing.assert_close(output_energy(rows, x.t() @ x), (rows @ x.t()).square().sum(1), rtol=1e-4, atol=0)
