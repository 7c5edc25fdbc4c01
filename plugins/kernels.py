"""The door to the kernels: whether Triton's stand behind the references here, and how their schedules are chosen.

Beside ``x.py``, which says what a plugin computes, lies ``x_triton.py``, whose ``run`` computes the same on a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, wraps
from importlib import import_module
from statistics import median
from typing import Any, TypeVar, cast

from .lazy import torch

# Schedules are tried behind so many zeros, which leave nothing else in a cache; so many times in a graph.
CACHE_BYTES, REPEATS = 2**26, 5
# The first GPU generation that the kernels are written for: Ampere.
LEAST_SM = 80
# The first that has a copy engine, and whose kernels may start before the one that makes their input has ended.
HOPPER = 90
# Triton computes its kernels with NumPy, on tensors of the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@cache
def compute_capability(device: int) -> int:
    """SM number of a GPU: 80, 86, 89, 90."""
    major, minor = torch.cuda.get_device_capability(device)
    return int(major * 10 + minor)


@cache
def available(device: int = 0) -> bool:
    """Whether kernels run on a GPU; where they do not a warning says why, once, and references compute instead."""
    why = None
    if importlib.util.find_spec("triton") is None:
        why = "Triton is not installed (pip install triton)"
    elif compute_capability(device) < LEAST_SM:
        why = f"the GPU is of SM {compute_capability(device)}, kernels need {LEAST_SM}"
    if why is not None:
        warnings.warn(f"PyTorch computes what kernels would, slower: {why}", stacklevel=2)
    return why is None


Function = TypeVar("Function", bound=Callable[..., Any])


def beside(reference: Function, module: str, name: str = "run") -> Function:
    """A reference, or the function of the module beside it that computes the same where kernels run.

    Args:
        reference: its first argument is a tensor, which says where.
    """
    kernel = cache(lambda: getattr(import_module(f".{module}", __package__), name))

    @wraps(reference)
    def run(x: torch.Tensor, *others: Any, **named: Any) -> Any:
        if not behind(x):
            return reference(x, *others, **named)
        if x.is_cuda and x.device.index != torch.cuda.current_device():
            with torch.cuda.device(x.device):  # Triton launches on the current one
                return kernel()(x, *others, **named)
        return kernel()(x, *others, **named)

    return cast(Function, run)


def behind(x: torch.Tensor) -> bool:
    """Whether kernels compute what is asked of a tensor."""
    return x.is_cuda and available(x.device.index or 0)


def behind_packed(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether kernels multiply a weight's integers as they are packed, by inputs of a dtype: half precision alone."""
    return behind(weight) and dtype in (torch.float16, torch.bfloat16)


def generation(x: torch.Tensor) -> int:
    """SM number of a tensor's GPU; 0 where kernels are interpreted."""
    return 0 if INTERPRETED else compute_capability(x.device.index or 0)


def starts_early(x: torch.Tensor) -> dict[str, bool]:
    """How a kernel is launched that waits for its input itself: on Hopper, while the one before it ends."""
    return {"EARLY": True, "launch_pdl": True} if generation(x) >= HOPPER else {"EARLY": False}


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up; Triton's own function takes as long as a launch."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The least power of two that is n or more."""
    return 1 << (n - 1).bit_length()


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
        import triton

        from .launches import Launches

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
        import triton

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
