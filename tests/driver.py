"""A kernel launched through the CUDA driver by its name, its PTX and numbers, as an engine's runtime launches it."""

from __future__ import annotations

import ctypes
from functools import cache

import torch

from enginesmith.plugins.tensorrt.ahead import Kernel


@cache
def libcuda() -> ctypes.CDLL:
    torch.zeros(1, device="cuda")  # PyTorch's context is current from here on
    return ctypes.CDLL("libcuda.so.1")


def check(result: int) -> None:
    if result:
        name = ctypes.c_char_p()
        libcuda().cuGetErrorName(result, ctypes.byref(name))
        raise RuntimeError(f"CUDA driver: {name.value!r}")


@cache
def function(kernel: Kernel) -> ctypes.c_void_p:
    """The driver assembles the PTX, with its own options; no attribute is set."""
    module, found = ctypes.c_void_p(), ctypes.c_void_p()
    check(libcuda().cuModuleLoadData(ctypes.byref(module), kernel.ptx.encode() + b"\0"))
    check(libcuda().cuModuleGetFunction(ctypes.byref(found), module, kernel.name.encode()))
    return found


def launch(kernel: Kernel, grid: tuple[int, int], *arguments: torch.Tensor | int) -> None:
    """On the current stream; tensors are passed as pointers, integers as int32."""
    values = [
        ctypes.c_void_p(one.data_ptr()) if isinstance(one, torch.Tensor) else ctypes.c_int32(one) for one in arguments
    ]
    passed = (ctypes.c_void_p * len(values))(*(ctypes.cast(ctypes.byref(one), ctypes.c_void_p) for one in values))
    blocks, threads = (*map(ctypes.c_uint, grid), ctypes.c_uint(1)), map(ctypes.c_uint, (kernel.threads, 1, 1))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    shared = ctypes.c_uint(kernel.shared)
    check(libcuda().cuLaunchKernel(function(kernel), *blocks, *threads, shared, stream, passed, None))
