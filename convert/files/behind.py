"""Writing behind the work: what a GPU made reaches its file in a thread, in the order in which it came."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import torch

# Bytes that may wait for the disk, and after how many it is told to keep what it has: at the end that takes seconds.
MOST_WAITING, SYNCED = 1 << 30, 1 << 30


class Behind:
    """One file's writer.

    Args:
        descriptor: of the open file; it must stay open until ``end``.
    """

    def __init__(self, descriptor: int):
        self.descriptor, self.waiting, self.bytes = descriptor, deque[tuple[int, Future[None]]](), 0
        self.writer, self.since = ThreadPoolExecutor(1, "write-behind"), 0

    def put(self, tensor: torch.Tensor, at: int) -> None:
        """Write a CUDA tensor's bytes from a place on; waits where too much is on its way.

        Raises:
            OSError: an earlier one could not be written.
        """
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
        data = host.view(-1).view(torch.uint8)
        while self.waiting and self.bytes + len(data) > MOST_WAITING:
            self.await_one()
        self.bytes += len(data)
        self.waiting.append((len(data), self.writer.submit(self.write, data, at)))

    def write(self, data: torch.Tensor, at: int) -> None:
        left = data.numpy().data
        while left:
            count = os.pwrite(self.descriptor, left, at)
            left, at = left[count:], at + count
        self.since += len(data)
        if self.since >= SYNCED:
            os.fdatasync(self.descriptor)
            self.since = 0

    def await_one(self) -> None:
        size, done = self.waiting.popleft()
        self.bytes -= size
        done.result()

    def drain(self) -> None:
        """Wait until all is written.

        Raises:
            OSError: something could not be.
        """
        while self.waiting:
            self.await_one()

    def end(self) -> None:
        """Write no more; what has begun is finished."""
        self.writer.shutdown(cancel_futures=True)
