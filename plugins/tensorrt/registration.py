"""The plugins as TensorRT knows them (10.9 or later): importing this registers them with ``tensorrt.plugin``.

Each says what it returns, in which types it computes and with which tactics, and, when an engine is built, hands
TensorRT a kernel for the GPU that is there, compiled ahead of time. The engine carries it: neither Python nor Triton
runs it. Float inputs are float16 or bfloat16, formats linear, channels last and contiguous.

This module never built an engine, for TensorRT was not at hand. It was tested with a stand-in for ``tensorrt.plugin``
and run over the Python layer of TensorRT 11.1; the kernels were launched through the CUDA driver with what is handed
over here.
"""

# Annotations are read by TensorRT, which wants types and not their names. ``eps`` is a decimal number in a string:
# TensorRT 11.1 reads attributes that are floats or integers by a conversion that NumPy 2.4 refuses.
from collections.abc import Iterable
from functools import reduce
from operator import mul
from typing import Any

import tensorrt as trt
import tensorrt.plugin as trtp
import torch

from ..kernels import compute_capability
from . import launches

FLOATS = {"float16": trt.float16, "bfloat16": trt.bfloat16}
# As TensorRT writes them where it asks for combinations.
WRITTEN = {"float16": "FP16", "bfloat16": "BF16"}
EITHER = "|".join(WRITTEN.values())


@trtp.register("enginesmith::smooth_quant_gemm")  # type: ignore[untyped-decorator]
def smooth_quant_gemm(
    x: trtp.TensorDesc,
    weight: trtp.TensorDesc,
    scale_a: trtp.TensorDesc,
    scale_b: trtp.TensorDesc,
    per_token: bool,
    per_channel: bool,
    dtype: str,
) -> trtp.TensorDesc:
    """int8 [..., in], int8 [out, in], float32 [..., 1] or [1, 1], float32 [1, out] or [1, 1] -> dtype [..., out]."""
    return described((*x.shape_expr[:-1], weight.shape_expr[0]), FLOATS[dtype])


@trtp.autotune("enginesmith::smooth_quant_gemm")  # type: ignore[untyped-decorator]
def smooth_quant_gemm_autotune(
    x: trtp.TensorDesc,
    weight: trtp.TensorDesc,
    scale_a: trtp.TensorDesc,
    scale_b: trtp.TensorDesc,
    dtype: str,
    outputs: tuple[trtp.TensorDesc],
) -> list[trtp.AutoTuneCombination]:
    types = f"INT8, INT8, FP32, FP32, {WRITTEN[dtype]}"
    return [trtp.AutoTuneCombination(types, "LINEAR", launches.tactics(most_tokens(x)))]


@trtp.aot_impl("enginesmith::smooth_quant_gemm")  # type: ignore[untyped-decorator]
def smooth_quant_gemm_aot(
    x: trtp.TensorDesc,
    weight: trtp.TensorDesc,
    scale_a: trtp.TensorDesc,
    scale_b: trtp.TensorDesc,
    per_token: bool,
    per_channel: bool,
    dtype: str,
    outputs: tuple[trtp.TensorDesc],
    tactic: int,
) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
    how = {"per_token": per_token, "per_channel": per_channel}
    launch = launches.smooth_quant_gemm(size(weight, 0), size(weight, 1), dtype, **how, tactic=tactic)
    return handed_over(launch, x)


@trtp.register("enginesmith::rmsnorm_quantization")  # type: ignore[untyped-decorator]
def rmsnorm_quantization(
    x: trtp.TensorDesc, weight: trtp.TensorDesc, eps: str
) -> tuple[trtp.TensorDesc, trtp.TensorDesc]:
    """Floats [..., channels] and [channels] -> int8 [..., channels], float32 [..., 1]."""
    return quantized(x)


@trtp.autotune("enginesmith::rmsnorm_quantization")  # type: ignore[untyped-decorator]
def rmsnorm_quantization_autotune(
    x: trtp.TensorDesc, weight: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc, trtp.TensorDesc]
) -> list[trtp.AutoTuneCombination]:
    return [trtp.AutoTuneCombination(f"{EITHER}, {EITHER}, INT8, FP32", "LINEAR")]


@trtp.aot_impl("enginesmith::rmsnorm_quantization")  # type: ignore[untyped-decorator]
def rmsnorm_quantization_aot(
    x: trtp.TensorDesc,
    weight: trtp.TensorDesc,
    eps: str,
    outputs: tuple[trtp.TensorDesc, trtp.TensorDesc],
    tactic: int,
) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
    return handed_over(launches.rmsnorm_quantization(size(x, -1), name_of(x), float(eps)), x)


@trtp.register("enginesmith::add_rmsnorm_quantization")  # type: ignore[untyped-decorator]
def add_rmsnorm_quantization(
    x: trtp.TensorDesc, residual: trtp.TensorDesc, weight: trtp.TensorDesc, eps: str
) -> tuple[trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc]:
    """Floats [..., channels] twice and [channels] -> their sum, and it normalized: int8, float32 [..., 1]."""
    return (x.like(), *quantized(x))


@trtp.autotune("enginesmith::add_rmsnorm_quantization")  # type: ignore[untyped-decorator]
def add_rmsnorm_quantization_autotune(
    x: trtp.TensorDesc,
    residual: trtp.TensorDesc,
    weight: trtp.TensorDesc,
    outputs: tuple[trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc],
) -> list[trtp.AutoTuneCombination]:
    return [trtp.AutoTuneCombination(f"{EITHER}, {EITHER}, {EITHER}, {EITHER}, INT8, FP32", "LINEAR")]


@trtp.aot_impl("enginesmith::add_rmsnorm_quantization")  # type: ignore[untyped-decorator]
def add_rmsnorm_quantization_aot(
    x: trtp.TensorDesc,
    residual: trtp.TensorDesc,
    weight: trtp.TensorDesc,
    eps: str,
    outputs: tuple[trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc],
    tactic: int,
) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
    return handed_over(launches.add_rmsnorm_quantization(size(x, -1), name_of(x), float(eps)), x)


@trtp.register("enginesmith::quantize_per_token")  # type: ignore[untyped-decorator]
def quantize_per_token(x: trtp.TensorDesc) -> tuple[trtp.TensorDesc, trtp.TensorDesc]:
    """Floats [..., channels] -> int8 [..., channels], float32 [..., 1]."""
    return quantized(x)


@trtp.autotune("enginesmith::quantize_per_token")  # type: ignore[untyped-decorator]
def quantize_per_token_autotune(
    x: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc, trtp.TensorDesc]
) -> list[trtp.AutoTuneCombination]:
    return [trtp.AutoTuneCombination(f"{EITHER}, INT8, FP32", "LINEAR")]


@trtp.aot_impl("enginesmith::quantize_per_token")  # type: ignore[untyped-decorator]
def quantize_per_token_aot(
    x: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc, trtp.TensorDesc], tactic: int
) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
    return handed_over(launches.quantize_per_token(size(x, -1), name_of(x)), x)


def described(shape: Iterable[Any], dtype: Any) -> Any:
    return trtp.from_shape_expr(tuple(shape), dtype=dtype)


def quantized(x: Any) -> tuple[Any, Any]:
    """Rows of int8, and their scales."""
    return described(x.shape_expr[:], trt.int8), described((*x.shape_expr[:-1], 1), trt.float32)


def handed_over(launch: launches.Launch, x: Any) -> tuple[str, str, Any, Any]:
    """What TensorRT puts into the engine, and evaluates whenever shapes change."""
    kernel, tokens = launch.kernel(generation()), reduce(mul, x.shape_expr[:-1])
    params = trtp.KernelLaunchParams()
    params.grid_x, params.grid_y = launch.grid(tokens, trtp.cdiv)
    params.block_x, params.shared_mem = kernel.threads, kernel.shared
    integers = trtp.SymIntExprs.from_tuple((trtp.SymInt32(tokens),) if launch.takes_tokens else ())
    return kernel.name, kernel.ptx, params, integers


def generation() -> int:
    """SM number of the GPU that the engine is built on, and for."""
    return compute_capability(torch.cuda.current_device())


def size(x: Any, dimension: int) -> int:
    """A dimension that has to be known when the engine is built."""
    known = int(tuple(x.shape)[dimension])
    if known < 0:
        raise ValueError("sizes of weights and rows must be known when an engine is built")
    return known


def name_of(x: Any) -> str:
    return next(name for name, dtype in FLOATS.items() if dtype == x.dtype)


def most_tokens(x: Any) -> int:
    """Of the optimization profile that the engine is tuned for."""
    return int(reduce(mul, (x.shape.max if x.is_dynamic else tuple(x.shape))[:-1]))
