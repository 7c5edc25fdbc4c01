"""How a decoder layer is put together: one description, run with whatever functions a caller brings.

    h = x + dense(attend(qkv(norm(x))))        behind the attention
    y = h + proj(product(fc(norm(h)), ...))    behind the MLP

``forward`` runs it with float functions, the checkpoint runtime with what plugins compute. It runs in steps, so that
linears may become something else while their input waits.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol, TypeVar

import torch

from .family import Family, Linear, Norm

# What a linear reads, and what it makes: a tensor, or more where a caller keeps more.
Read = TypeVar("Read")
Made = TypeVar("Made")


class Functions(Protocol[Read, Made]):
    """What a layer is made of, for one layer's weights. Hidden states are [batch, tokens, hidden_size]."""

    def norm(self, norm: Norm, x: torch.Tensor) -> Read:
        """A norm of the hidden states."""

    def linear(self, linear: Linear, read: Read) -> Made:
        """All parts of a linear."""

    def attend(self, qkv: Made) -> torch.Tensor:
        """Attention over queries, keys and values, [batch, tokens, query_size]."""

    def product(self, made: list[Made]) -> torch.Tensor:
        """The MLP's function of its first linear, times what its second one makes where there is one."""

    def read(self, linear: Linear, x: torch.Tensor) -> Read:
        """What a linear makes of an input that no norm makes."""

    def add(self, linear: Linear, x: torch.Tensor, made: Made) -> torch.Tensor:
        """The residual behind a linear."""


Steps = Generator[Read, None, torch.Tensor]


def steps(family: Family, functions: Functions[Read, Made], x: torch.Tensor) -> Steps[Read]:
    """One decoder layer, from hidden states before it to those behind it, [batch, tokens, hidden_size].

    It stops before every group of linears, in the order of ``Family.groups``, and yields what they read.
    """
    before_attention, before_mlp = family.norms
    qkv, dense, *mlp, proj = family.linears
    read = functions.norm(before_attention, x)
    yield read
    read = functions.read(dense, functions.attend(functions.linear(qkv, read)))
    yield read
    x = functions.add(dense, x, functions.linear(dense, read))
    read = functions.norm(before_mlp, x)
    yield read
    read = functions.read(proj, functions.product([functions.linear(linear, read) for linear in mlp]))
    yield read
    return functions.add(proj, x, functions.linear(proj, read))


def finished(layer: Steps[Read]) -> torch.Tensor:
    """What ``steps`` return, from wherever they stand."""
    while True:
        try:
            next(layer)
        except StopIteration as end:
            hidden: torch.Tensor = end.value
            return hidden
