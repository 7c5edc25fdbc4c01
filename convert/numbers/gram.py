"""The Gram matrix G = X'X of a linear's inputs, and what it says of an output, at little more than half the products.

G is symmetric: a panel of its rows, from the panel's first column on, holds all that lies below it too.

    G_p = X_p' [X_p X_p+1 ...]                                     p = 1 ... PANELS, groups of neighbouring channels
    w G w' = sum_p (w_p G_pp w_p' + 2 w_p [G_p,p+1 ...] [w_p+1 ...]')
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

# (1 + 1 / PANELS) / 2 of the products are left; more panels would be too narrow for fast matrix products.
PANELS = 6
# Channels of a panel are a multiple of this: a GPU's fast kernels want aligned rows.
MULTIPLE = {"cpu": 1, "cuda": 128}


def panels_of(gram: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Where each panel of G begins and ends."""
    return panels(len(gram), MULTIPLE[gram.device.type])


def panels(channels: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Neighbouring channels, a multiple of some number at a time."""
    width = -(-channels // (PANELS * multiple)) * multiple
    return ((start, min(start + width, channels)) for start in range(0, channels, width))


def add_inputs(gram: torch.Tensor, x: torch.Tensor) -> None:
    """Add X'X to the panels of G.

    Args:
        gram: float32 [in, in], changed in place; what lies below its panels stays.
        x: [tokens, in], in the dtype that multiplies.
    """
    for start, end in panels_of(gram):
        gram[start:end, start:] += x[:, start:end].t() @ x[:, start:]


def mirror(gram: torch.Tensor) -> torch.Tensor:
    """Fill in what lies below the panels of G, in place."""
    for start, end in panels_of(gram):
        gram[end:, start:end] = gram[start:end, end:].t()
    return gram


def output_energy(rows: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """|X w'|^2 = w G w' of every row w, float32 [rows]; of a change dW of a weight, the squared error of its outputs.

    Args:
        rows: float32 [rows, in].
        gram: float32 [in, in].
    """
    energy = rows.new_zeros(len(rows))
    for start, end in panels_of(gram):
        product = rows[:, start:end] @ gram[start:end, start:]
        product[:, end - start :].mul_(2)
        energy += product.mul_(rows[:, start:]).sum(1)
    return energy
