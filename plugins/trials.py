"""How a kernel's schedule is chosen: by trials, behind nothing that a cache holds, once for every kind of arguments."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import torch
import triton

from .kernels import INTERPRETED
from .launches import Launches

# Schedules are tried behind so many zeros, which leave nothing else in a cache; so many times in a graph.
CACHE_BYTES, REPEATS = 2**26, 5

Prune = Callable[..., list[Any]]


class Tuned:
    """A kernel with a few schedules: the fastest is found once for every kind of arguments, and remembered.

    Args:
        kernel: of ``triton.jit``.
        configs: the schedules; the last one where kernels are interpreted.
        key: arguments whose values make a kind, as ``triton.autotune`` has it.
        fitting: those of the schedules that are worth a trial for some arguments.

    Attributes:
        fn: the kernel.
    """

    def __init__(self, kernel: Any, configs: Sequence[Any], key: Sequence[str], fitting: Prune | None):
        prune = None if fitting is None or INTERPRETED else {"early_config_prune": fitting}
        few = list(configs[-1:] if INTERPRETED else configs)
        tune = triton.autotune(few, list(key), prune_configs_by=prune, do_bench=self.tried, cache_results=True)
        self.tuner, self.fn = tune(kernel), kernel
        self.launches, self.found = Launches(kernel), dict[Hashable, Any]()
        self.coming: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def launch(self, kind: Hashable, grid: Any, *arguments: Any, **meta: Any) -> None:
        """Launch it; kind: says as much as the key and the dtypes, for whoever finds it again."""
        config = self.found.get(kind)
        if config is None:
            self.coming = arguments, meta
            self.tuner[grid](*arguments, **meta)
            self.found[kind] = self.tuner.best_config
            return
        if config.pre_hook is not None:
            config.pre_hook(dict(zip(self.tuner.arg_names, arguments, strict=False)) | config.kwargs)
        self.launches[grid(config.kwargs)](*arguments, **meta, **config.all_kwargs())

    def tried(self, call: Callable[[], object], quantiles: Sequence[float] = (0.5,)) -> list[float]:
        """``milliseconds`` of one schedule, the first of them once all are compiled."""
        if self.coming is not None:
            self.compile(*self.coming)
            self.coming = None
        return milliseconds(call, quantiles)

    def compile(self, arguments: Sequence[Any], meta: dict[str, Any]) -> None:
        """Compile the schedules of a trial side by side, which takes most of its time."""
        named = dict(zip(self.tuner.arg_names, arguments, strict=False))
        with ThreadPoolExecutor() as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
            for config in self.tuner.prune_configs(meta):
                if config.pre_hook is not None:
                    config.pre_hook(named | config.kwargs)
                self.fn.warmup(*arguments, grid=(1,), **meta, **config.all_kwargs())


def tuned(configs: Sequence[Any], key: Sequence[str], fitting: Prune | None = None) -> Callable[[Any], Tuned]:
    """Make a kernel ``Tuned``."""
    return lambda kernel: Tuned(kernel, configs, key, fitting)


def milliseconds(call: Callable[[], object], quantiles: Sequence[float] = (0.5,)) -> list[float]:
    """How long a call takes with nothing of its inputs in a cache, whatever its launch costs: within a CUDA graph."""
    emptied = torch.empty(CACHE_BYTES, dtype=torch.int8, device="cuda")

    def both() -> None:
        emptied.zero_()
        call()

    call()
    taken = median_replay(both) - median_replay(emptied.zero_)
    return [taken] * len(quantiles)


def median_replay(call: Callable[[], object]) -> float:
    """Median milliseconds of a call in a graph of several."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(REPEATS):
            call()
    taken = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / REPEATS)
    return float(median(taken))
