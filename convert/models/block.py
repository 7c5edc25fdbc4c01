"""How a decoder layer is put together: one description, run with whatever functions a caller brings.

    sequential    h = x + attention(norm(x))                  y = h + mlp(norm(h))
    parallel      y = x + attention(norm(x)) + mlp(norm(x))   of one norm, or of two
    sandwiched    h = x + norm(attention(norm(x)))            y = h + norm(mlp(norm(h)))
    behind        h = norm(x + attention(x))                  y = norm(h + mlp(h))

    attention(x) = dense(attend(qkv(x)))                      mlp(x) = proj(product(fc(x), ...))

or, in place of the MLP, the sum of some experts, each an MLP of the tokens that are sent to it.

``forward`` runs it with float functions, the checkpoint runtime with what plugins compute. It runs in steps, so that
linears may become something else while their input waits.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol, TypeVar

import torch

from ...plugins.mixture_of_experts import Routed
from .family import Family
from .pieces import BEHIND, PARALLEL, SANDWICHED, SEQUENTIAL, Linear, Mlp, Norm

# What a linear reads, and what it makes: a tensor, or more where a caller keeps more.
Read = TypeVar("Read")
Made = TypeVar("Made")
Result = TypeVar("Result")


class Functions(Protocol[Read, Made]):
    """What a layer is made of, for one layer's weights. Hidden states are [batch, tokens, hidden_size]."""

    def norm(self, norm: Norm, x: torch.Tensor) -> Read:
        """A norm of the hidden states."""

    def linear(self, linear: Linear, read: Read) -> Made:
        """All parts of a linear."""

    def attend(self, qkv: Made) -> torch.Tensor:
        """Attention over queries, keys and values, [batch, tokens, query_size]."""

    def product(self, mlp: Mlp, made: list[Made]) -> Read:
        """What the last linear of an MLP reads: its function of one logical linear, times the other's where there is
        one."""

    def routed(self, norm: Norm, x: torch.Tensor) -> Routed:
        """The norm of hidden states, on its way through experts."""

    def add_expert(self, routed: Routed, expert: int, made: Made) -> None:
        """What an expert makes of the tokens that it read."""

    def add_shared(self, routed: Routed, made: Made) -> None:
        """What the shared expert makes of all tokens."""

    def gathered(self, routed: Routed, x: torch.Tensor) -> Made:
        """What all experts have made; x: the hidden states that went in."""

    def read(self, linear: Linear, x: torch.Tensor) -> Read:
        """What a linear makes of an input that no norm makes."""

    def normed(self, norm: Norm, made: Made) -> Made:
        """A norm of what a linear makes."""

    def behind(self, norm: Norm, x: torch.Tensor) -> torch.Tensor:
        """A norm whose output is the hidden states themselves."""

    def add(self, linear: Linear, x: torch.Tensor, made: Made) -> torch.Tensor:
        """The residual behind a linear."""


Steps = Generator[Read, None, torch.Tensor]
Half = Generator[Read, None, Result]


def steps(family: Family, functions: Functions[Read, Made], x: torch.Tensor) -> Steps[Read]:
    """One decoder layer, from hidden states before it to those behind it, [batch, tokens, hidden_size].

    It stops before every group of linears, in the order of ``Family.groups``, and yields what they read.
    """
    ways = {SEQUENTIAL: sequential, PARALLEL: parallel, SANDWICHED: sandwiched, BEHIND: behind}
    return ways[family.arrangement](family, functions, x)


def sequential(family: Family, functions: Functions[Read, Made], x: torch.Tensor) -> Steps[Read]:
    """The MLP reads what attention has made."""
    before_attention, before_mlp = family.norms
    made = yield from attention(family, functions, functions.norm(before_attention, x))
    x = functions.add(family.linears[1], x, made)
    if family.mixture is None:
        made = yield from mlp(family, functions, functions.norm(before_mlp, x))
    else:
        made = yield from mixture(family, functions, before_mlp, x)
    return functions.add(family.linears[-1], x, made)


def sandwiched(family: Family, functions: Functions[Read, Made], x: torch.Tensor) -> Steps[Read]:
    """The same, with a norm behind each half too."""
    before_attention, behind_attention, before_mlp, behind_mlp = family.norms
    made = yield from attention(family, functions, functions.norm(before_attention, x))
    x = functions.add(family.linears[1], x, functions.normed(behind_attention, made))
    made = yield from mlp(family, functions, functions.norm(before_mlp, x))
    return functions.add(family.linears[-1], x, functions.normed(behind_mlp, made))


def behind(family: Family, functions: Functions[Read, Made], x: torch.Tensor) -> Steps[Read]:
    """What a norm makes of the residual is what is added to next."""
    behind_attention, behind_mlp = family.norms
    qkv, dense, fc, *_, proj = family.linears
    made = yield from attention(family, functions, functions.read(qkv, x))
    x = functions.behind(behind_attention, functions.add(dense, x, made))
    made = yield from mlp(family, functions, functions.read(fc, x))
    return functions.behind(behind_mlp, functions.add(proj, x, made))


def parallel(family: Family, functions: Functions[Read, Made], x: torch.Tensor) -> Steps[Read]:
    """Both read the layer's input; behind one norm they read the same, and stop for it once."""
    first, *second = family.norms
    read = functions.norm(first, x)
    attended = yield from attention(family, functions, read)
    if second:
        made = yield from mlp(family, functions, functions.norm(second[0], x))
    else:
        made = yield from behind_product(family.mlp, functions, read)
    return functions.add(family.linears[-1], functions.add(family.linears[1], x, attended), made)


def attention(family: Family, functions: Functions[Read, Made], read: Read) -> Half[Read, Made]:
    """Stops before the linears that make queries, keys and values, and before the one behind them."""
    qkv, dense, *_ = family.linears
    yield read
    read = functions.read(dense, functions.attend(functions.linear(qkv, read)))
    yield read
    return functions.linear(dense, read)


def mlp(family: Family, functions: Functions[Read, Made], read: Read) -> Half[Read, Made]:
    """Stops before its first linears and before its last."""
    yield read
    return (yield from behind_product(family.mlp, functions, read))


def behind_product(mlp: Mlp, functions: Functions[Read, Made], read: Read) -> Half[Read, Made]:
    """An MLP once its input has come."""
    read = functions.product(mlp, [functions.linear(linear, read) for linear in mlp.first])
    yield read
    return functions.linear(mlp.last, read)


def mixture(family: Family, functions: Functions[Read, Made], norm: Norm, x: torch.Tensor) -> Half[Read, Made]:
    """Experts one after the other, each for the tokens that are sent to it, then the one that reads all."""
    routed = functions.routed(norm, x)
    for number, expert in enumerate(family.experts):
        read = functions.read(expert.first[0], routed.read(number))
        yield read
        functions.add_expert(routed, number, (yield from behind_product(expert, functions, read)))
    if family.shared is not None:
        read = functions.read(family.shared.first[0], routed.x)
        yield read
        functions.add_shared(routed, (yield from behind_product(family.shared, functions, read)))
    return functions.gathered(routed, x)


def finished(layer: Steps[Read]) -> torch.Tensor:
    """What ``steps`` return, from wherever they stand."""
    while True:
        try:
            next(layer)
        except StopIteration as end:
            hidden: torch.Tensor = end.value
            return hidden
