"""Medians of kernels on a GPU, and the floor of what they must read and write."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

Call = Callable[[int], object]
# Bytes a second that a copy in device memory moves, read and written together; measured once.
_RATE: list[float] = []


def rate() -> float:
    """Bytes a second of device memory, by a copy of 2 GiB."""
    if not _RATE:
        source = torch.empty(2**31, dtype=torch.int8, device="cuda")
        target = torch.empty_like(source)
        _RATE.append(2 * source.nbytes / (launched(lambda i: target.copy_(source), 10) * 1e-6))
    return _RATE[0]


def floor(read_and_written: float) -> float:
    """Microseconds that so many bytes take."""
    return read_and_written / rate() * 1e6


def launched(call: Call, times: int = 30) -> float:
    """Median microseconds of a call that is launched by itself."""
    for i in range(5):
        call(i)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(times)]
    torch.cuda.synchronize()
    for i, (start, end) in enumerate(events):
        start.record()
        call(i)
        end.record()
    torch.cuda.synchronize()
    return 1e3 * median(start.elapsed_time(end) for start, end in events)


def replayed(call: Call, sets: int, repeats: int = 3) -> float:
    """Median microseconds of a call in a CUDA graph that goes through ``sets`` of inputs, more than a cache holds."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for i in range(sets):
            call(i)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(repeats):
                for i in range(sets):
                    call(i)
    return launched(lambda i: graph.replay(), 15) / sets / repeats


def sets_of(read: int) -> int:
    """So many inputs of some bytes that no cache holds them all."""
    return max(2, min(24, 300_000_000 // max(read, 1) + 1))
