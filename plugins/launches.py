"""Launches of kernels: what was compiled for some kind of arguments is found again without Triton's own search for it,
which takes several times as long as the launch."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from .kernels import INTERPRETED

# Addresses and numbers of which these are divisors have kernels of their own.
ALIGNED = 16


class Launches:
    """``launches[grid](*arguments, **constants)`` is ``kernel[grid]`` of the same, sooner from the second time on.

    Args:
        kernel: of ``triton.jit``; constants and options are given by name, all else in order.
    """

    def __init__(self, kernel: Any):
        self.kernel = kernel
        self.compiled: dict[Hashable, tuple[Any, list[Any]]] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.kernel[grid] if INTERPRETED else partial(self.launch, grid)

    def launch(self, grid: tuple[int, ...], *arguments: Any, **named: Any) -> None:
        kind = (torch.cuda.current_device(), *map(kind_of, arguments), *named, *named.values())
        found = self.compiled.get(kind)
        if found is None:
            constants = [named[name] for name in self.kernel.arg_names[len(arguments) :]]
            self.compiled[kind] = self.kernel[grid](*arguments, **named), constants
            return
        kernel, constants = found
        whole = (*grid, 1, 1)
        kernel[whole](*arguments, *constants)


def kind_of(argument: Any) -> Hashable:
    """What of an argument Triton compiles a kernel for."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % ALIGNED == 0
    if type(argument) is int:
        return argument == 1, argument % ALIGNED == 0, argument.bit_length() > 31
    if type(argument) is float:
        return float
    if isinstance(argument, TensorDescriptor):
        return argument.base.dtype, *argument.block_shape
    return argument  # type: ignore[no-any-return]
