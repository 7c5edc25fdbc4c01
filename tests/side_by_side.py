"""Ranks of a checkpoint in threads of this process, which sum what they make as processes do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from enginesmith.convert.peers import Peers

Result = TypeVar("Result")


class Table:
    """Where each lays down what the others take."""

    def __init__(self, size: int):
        self.barrier, self.held = threading.Barrier(size, timeout=60), [torch.empty(0)] * size


@dataclass(frozen=True, eq=False)
class Threads(Peers):
    """As ``Peers``."""

    table: Table = field(default_factory=lambda: Table(1))

    def device(self, name: str) -> torch.device:
        return torch.device(name)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self.exchanged(x)
        for other in others:
            first = first + other
        return first

    def same(self, x: torch.Tensor) -> torch.Tensor:
        return self.exchanged(x)[0]

    def exchanged(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.table.held[self.rank] = x.clone()
        self.table.barrier.wait()
        held = list(self.table.held)
        self.table.barrier.wait()
        return held


def together(size: int, work: Callable[[Peers], Result]) -> list[Result]:
    """What each of some ranks makes."""
    table = Table(size)

    def one(rank: int) -> Result:
        try:
            return work(Threads(size, rank, table))
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))
