"""The processes that execute one checkpoint together, a tensor parallel rank each, as torchrun starts them.

What ranks have in pieces is summed as engines sum it: in the dtype of the products, each rounded before.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..plugins.lazy import torch
from .device import pick_device
from .errors import InputError, reason


@dataclass(frozen=True)
class Peers:
    """Some processes, seen by one of them.

    Attributes:
        size: of them; 1 where there is only this one, which executes all ranks put together.
        rank: of this one.
    """

    size: int = 1
    rank: int = 0

    def device(self, name: str) -> torch.device:
        """``pick_device``, of each process its own GPU; they are connected then.

        Raises:
            InputError: no such device, or not one for each process.
        """
        device = pick_device(name)
        if self.size == 1:
            return device
        if device.type == "cuda":
            here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", self.size)), torch.cuda.device_count()
            if device.index is not None:
                raise InputError(f"--device {name}: each of {self.size} processes takes its own GPU; give cuda or auto")
            if here > gpus:
                raise InputError(f"--device: {here} processes and {gpus} GPUs here; each needs its own, or give cpu")
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        if not torch.distributed.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            torch.distributed.init_process_group(backend, store=store(), rank=self.rank, world_size=self.size)
        return device

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of what all have as x, in its dtype; all get the same bits. x may be overwritten."""
        if self.size > 1:
            x = x.contiguous()
            with self.reaching():
                torch.distributed.all_reduce(x)
        return x

    def same(self, x: torch.Tensor) -> torch.Tensor:
        """What the first has as x, so that all go on alike. x may be overwritten."""
        if self.size > 1:
            x = x.contiguous()
            with self.reaching():
                torch.distributed.broadcast(x, 0)
        return x

    def all(self, flags: torch.Tensor) -> torch.Tensor:
        """Which of some flags are true everywhere."""
        return flags if self.size == 1 else self.sum(flags.int()) == self.size

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Say what it means where others are not reached."""
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"another of {self.size} processes has ended, or is not reached ({reason(error)})"
            ) from error


ALONE = Peers()


def started() -> Peers:
    """Those that torchrun started together with this one, by the environment; ALONE without it."""
    size, rank, local = (os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    if not (size.isdecimal() and rank.isdecimal() and local.isdecimal()) or int(size) < 2:
        return ALONE
    return Peers(int(size), int(rank))


def check_started() -> None:
    """Raise InputError for an environment in which processes cannot find each other, which would wait for ever."""
    peers = started()
    if peers.rank >= peers.size:
        raise InputError(f"RANK is {peers.rank}, WORLD_SIZE {peers.size}; ranks count from 0: use torchrun")
    port = os.environ.get("MASTER_PORT", "")
    if peers.size > 1 and not (os.environ.get("MASTER_ADDR") and port.isdecimal() and int(port) < 2**16):
        raise InputError(
            f"WORLD_SIZE is {peers.size}, but MASTER_ADDR and MASTER_PORT do not say where processes meet; "
            "use torchrun, or unset WORLD_SIZE"
        )


@cache
def store() -> Any:
    """What all of them can write to and read, before they are connected too."""
    peers = started()
    found = torch.distributed.rendezvous("env://", peers.rank, peers.size)  # type: ignore[attr-defined]
    return next(iter(found))[0]


def fails_first() -> bool:
    """Whether no other process has failed before: one that fails because another did has nothing to tell."""
    peers = started()
    if peers.size == 1:
        return True
    try:
        check_started()
    except InputError:  # nobody can be asked
        return True
    try:
        return bool(store().add("enginesmith failures", 1) == 1)
    except Exception:  # who keeps it has gone
        return peers.rank == 0


def part() -> None:
    """The end of the work of all."""
    if started().size > 1 and torch.distributed.is_initialized():
        gc.collect()  # what was recorded on a GPU holds on to NCCL
        torch.distributed.destroy_process_group()
