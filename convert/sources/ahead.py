"""Reading ahead: the next layer comes from the disk while a GPU works on this one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from ...plugins.lazy import torch
from .weight_names import Found


class Ahead:
    """Tensors on their way into memory that a GPU copies from at its full rate.

    Args:
        where: tensors by name.
    """

    def __init__(self, where: Mapping[str, Found]):
        self.where = where
        self.coming: dict[str, Future[torch.Tensor]] = {}
        self.reader = ThreadPoolExecutor(1, "read-ahead")

    def begin(self, names: Iterable[str]) -> None:
        """Read these, one after the other, in a thread."""
        for name in names:
            if name not in self.coming:
                self.coming[name] = self.reader.submit(self.where[name].read, pinned=True)

    def take(self, name: str) -> torch.Tensor:
        """A tensor, once; what nobody has begun to read is read now."""
        coming = self.coming.pop(name, None)
        return self.where[name].read(pinned=True) if coming is None else coming.result()
