"""How a decoder layer is put together: one description, run with whatever functions a caller brings.

    h = x + dense(attend(qkv(norm(x))))        behind the attention
    y = h + proj(product(fc(norm(h)), ...))    behind the MLP

``forward`` runs it with float functions, the checkpoint runtime with what plugins compute.
"""

from __future__ import annotations

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


def run(family: Family, functions: Functions[Read, Made], x: torch.Tensor) -> torch.Tensor:
    """One decoder layer: hidden states before it and behind it, [batch, tokens, hidden_size]."""
    before_attention, before_mlp = family.norms
    qkv, dense, *mlp, proj = family.linears
    made = functions.linear(qkv, functions.norm(before_attention, x))
    read = functions.read(dense, functions.attend(made))
    x = functions.add(dense, x, functions.linear(dense, read))
    normed = functions.norm(before_mlp, x)
    product = functions.product([functions.linear(linear, normed) for linear in mlp])
    return functions.add(proj, x, functions.linear(proj, functions.read(proj, product)))
