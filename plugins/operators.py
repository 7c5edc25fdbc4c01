"""What plugins compute, as PyTorch operators: importing this module registers ``torch.ops.enginesmith.*``.

A kernel computes them on a GPU, the plugin's reference elsewhere, with the same integers. They can be compiled,
exported and captured in CUDA graphs; nothing is differentiated. Matrices are [tokens, channels] in float16 or bfloat16,
``kind`` is "int8" or "fp8" (e4m3), scales are float32: one a token [tokens, 1] where they are found at run time, [1]
where they are static (INT8: 127 / range, by which values are multiplied; FP8: range / 448, by which they are divided).

Arguments are checked here, once: what a kernel would read past, or otherwise than the reference does, is a ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from . import (
    fp8_rowwise_gemm,
    gated_activation,
    layernorm_quantization,
    quantize_per_token,
    quantize_tensor,
    rmsnorm_quantization,
    smooth_quant_gemm,
)
from .gated_activation import ACTIVATIONS

DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
FLOATS = (torch.float16, torch.bfloat16)
OR_FLOAT32 = (*FLOATS, torch.float32)
# Matrices whose rows kernels read at any stride.
STRIDED = ("x", "residual", "gate", "up")


def is_matrix(x: Tensor, dtypes: tuple[torch.dtype, ...]) -> bool:
    return x.dtype in dtypes and x.dim() == 2 and x.shape[1] > 0


def is_like(x: Tensor, other: Tensor) -> bool:
    return (x.shape, x.dtype) == (other.shape, other.dtype)


def is_channels(t: Tensor | None, x: Tensor) -> bool:
    return t is None or (t.dtype in OR_FLOAT32 and t.shape == x.shape[1:])


def is_scale(t: Tensor, *shapes: tuple[int, ...]) -> bool:
    return t.dtype == torch.float32 and ((t.numel() == 1 and t.dim() <= 2) or tuple(t.shape) in shapes)


# What arguments may be, by their names: in words, and whether one is that, of (it, the first one, all by name).
Rule = tuple[str, Callable[[Any, Tensor, dict[str, Any]], bool]]
ROWS: Rule = "float16 or bfloat16 [tokens, channels]", lambda t, x, _: is_matrix(t, FLOATS)
LIKE: Rule = "the first matrix's shape and dtype", lambda t, x, _: is_like(t, x)
CHANNELS: Rule = "float16, bfloat16 or float32 [channels]", lambda t, x, _: is_channels(t, x)
RULES: dict[str, Rule] = {
    "x": ROWS,
    "gate": ROWS,
    "residual": LIKE,
    "up": LIKE,
    "weight": CHANNELS,
    "bias": CHANNELS,
    "smoother": (
        f"{CHANNELS[0]} or [1, channels]",
        lambda t, x, _: t is None or (t.shape[:-1] in ((), (1,)) and is_channels(t.reshape(-1), x)),
    ),
    "scale": ("float32 of one element", lambda t, x, _: is_scale(t)),
    "eps": ("a finite number, 0 or more,", lambda eps, x, _: 0 <= eps < math.inf),
    "kind": ("int8 or fp8", lambda kind, x, _: kind in DTYPES),
    "activation": (f"one of {', '.join(ACTIVATIONS)}", lambda name, x, _: name in ACTIVATIONS),
}
LAYER_NORM = RULES | {
    "x": (f"{ROWS[0]}, channels even,", lambda t, x, _: is_matrix(t, FLOATS) and t.shape[1] % 2 == 0),
}
PRODUCT: dict[str, Rule] = {
    "x": ("int8 [tokens, in]", lambda t, x, _: is_matrix(t, (torch.int8,))),
    "weight": (
        "x's dtype and channels, [out, in],",
        lambda t, x, _: is_matrix(t, (x.dtype,)) and t.shape[1] == x.shape[1],
    ),
    "scale_a": ("float32 [tokens, 1] or of one element", lambda t, x, _: is_scale(t, (len(x), 1))),
    "scale_b": (
        "float32 [1, out] or of one element",
        lambda t, x, given: is_scale(t, (1, len(given["weight"])), (len(given["weight"]),)),
    ),
    "dtype": ("float16, bfloat16 or float32", lambda dtype, x, _: dtype in OR_FLOAT32),
    "bias": (
        "[out] in the dtype asked for",
        lambda t, x, given: t is None or (t.dtype, t.shape) == (given["dtype"], given["weight"].shape[:1]),
    ),
}
FP8_PRODUCT = PRODUCT | {"x": ("e4m3 [tokens, in]", lambda t, x, _: is_matrix(t, (torch.float8_e4m3fn,)))}


def check(given: dict[str, Any], rules: dict[str, Rule]) -> None:
    """Raise ValueError for an argument that is not what it has to be."""
    first = next(iter(given.values()))
    for name, value in given.items():
        words, holds = rules[name]
        if not holds(value, first, given):
            raise ValueError(f"{name} is {described(value)}; {words} is needed")


def check_devices(arguments: Iterable[Any]) -> None:
    """Raise ValueError for tensors on several devices."""
    devices = sorted({str(value.device) for value in arguments if isinstance(value, Tensor)})
    if len(devices) > 1:
        raise ValueError(f"tensors are on {' and '.join(devices)}; move all to one device")


def described(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)


def readable(name: str, value: Any) -> Any:
    """An argument, a tensor as kernels read it: copied where it lies otherwise."""
    if not isinstance(value, Tensor) or (name in STRIDED and value.stride(-1) == 1):
        return value
    return value.contiguous()


def operator(
    name: str, fake: Callable[..., Any], rules: dict[str, Rule] = RULES
) -> Callable[[Callable[..., Any]], Any]:
    """Register a function; fake makes what it returns, without numbers, of the same arguments."""

    def register(function: Callable[..., Any]) -> Any:
        names = tuple(signature(function).parameters)

        @wraps(function)
        def checked(*arguments: Any, **named: Any) -> Any:
            given = dict(zip(names, arguments, strict=False)) | named
            check_devices(given.values())
            check(given, rules)
            return function(**{name: readable(name, value) for name, value in given.items()})

        def shaped(*arguments: Any, **named: Any) -> Any:
            check_devices((*arguments, *named.values()))
            return fake(*arguments, **named)

        made = torch.library.custom_op(f"enginesmith::{name}", checked, mutates_args=())
        made.register_fake(shaped)
        return made

    return register


def of_rows(q: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows that were quantized per token."""
    assert scale is not None
    return q, scale


def product(x: Tensor, weight: Tensor, scale_a: Tensor, scale_b: Tensor, dtype: torch.dtype, *_: Any) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)


def as_read(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def quantized(x: Tensor, kind: str) -> Tensor:
    check({"kind": kind}, RULES)
    return x.new_empty(x.shape, dtype=DTYPES[kind])


def scaled(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    return quantized(x, kind), x.new_empty((x.shape[0], 1), dtype=torch.float32)


@operator("smooth_quant_gemm", product, PRODUCT)
def _smooth_quant_gemm(
    x: Tensor, weight: Tensor, scale_a: Tensor, scale_b: Tensor, dtype: torch.dtype, bias: Tensor | None = None
) -> Tensor:
    """(x @ weight.T) * scale_a * scale_b + bias of int8 [tokens, in] and [out, in]: see ``smooth_quant_gemm``."""
    return smooth_quant_gemm.run(x, weight, scale_a, scale_b, dtype, bias)


@operator("fp8_gemm", product, FP8_PRODUCT)
def _fp8_gemm(x: Tensor, weight: Tensor, scale_a: Tensor, scale_b: Tensor, dtype: torch.dtype) -> Tensor:
    """(x @ weight.T) * scale_a * scale_b of e4m3 [tokens, in] and [out, in], scales per row or of one element."""
    return fp8_rowwise_gemm.run(x, weight, scale_a, scale_b, dtype)


@operator("quantize_per_token", lambda x, smoother=None, kind="int8": scaled(x, kind))
def _quantize_per_token(x: Tensor, smoother: Tensor | None = None, kind: str = "int8") -> tuple[Tensor, Tensor]:
    """x / smoother, quantized: the integers and their scales."""
    return quantize_per_token.run(x, smoother, kind=kind)


@operator("quantize_static", lambda x, scale, smoother=None, kind="int8": quantized(x, kind))
def _quantize_static(x: Tensor, scale: Tensor, smoother: Tensor | None = None, kind: str = "int8") -> Tensor:
    """x / smoother, quantized with a scale."""
    return quantize_tensor.run(x, scale, smoother, kind=kind)


@operator("rms_norm", as_read)
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight."""
    return rmsnorm_quantization.run(x, weight, eps).y_or_q


@operator("rms_norm_quantize_per_token", lambda x, weight, eps, kind="int8": scaled(x, kind))
def _rms_norm_quantize_per_token(x: Tensor, weight: Tensor, eps: float, kind: str = "int8") -> tuple[Tensor, Tensor]:
    """``rms_norm``, quantized: the integers and their scales."""
    made = rmsnorm_quantization.run(x, weight, eps, kind=kind)
    return of_rows(made.y_or_q, made.scale)


@operator("rms_norm_quantize_static", lambda x, weight, scale, eps, kind="int8": quantized(x, kind))
def _rms_norm_quantize_static(x: Tensor, weight: Tensor, scale: Tensor, eps: float, kind: str = "int8") -> Tensor:
    """``rms_norm``, quantized with a scale."""
    return rmsnorm_quantization.run(x, weight, eps, kind=kind, scale=scale).y_or_q


@operator(
    "add_rms_norm_quantize_per_token",
    lambda x, residual, weight, eps, kind="int8": (as_read(x), *scaled(x, kind)),
)
def _add_rms_norm_quantize_per_token(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, kind: str = "int8"
) -> tuple[Tensor, Tensor, Tensor]:
    """x + residual, and its ``rms_norm_quantize_per_token``."""
    made = rmsnorm_quantization.run(x, weight, eps, residual=residual, kind=kind)
    return made.hidden, *of_rows(made.y_or_q, made.scale)


@operator(
    "add_rms_norm_quantize_static",
    lambda x, residual, weight, scale, eps, kind="int8": (as_read(x), quantized(x, kind)),
)
def _add_rms_norm_quantize_static(
    x: Tensor, residual: Tensor, weight: Tensor, scale: Tensor, eps: float, kind: str = "int8"
) -> tuple[Tensor, Tensor]:
    """x + residual, and its ``rms_norm_quantize_static``."""
    made = rmsnorm_quantization.run(x, weight, eps, residual=residual, kind=kind, scale=scale)
    return made.hidden, made.y_or_q


@operator("layer_norm_quantize_per_token", lambda x, weight, bias, eps, kind="int8": scaled(x, kind), LAYER_NORM)
def _layer_norm_quantize_per_token(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kind: str = "int8"
) -> tuple[Tensor, Tensor]:
    """(x - mean) / sqrt(variance + eps) * weight + bias, quantized: the integers and their scales."""
    made = layernorm_quantization.run(x, weight, bias, eps, kind=kind)
    return of_rows(made.y_or_q, made.scale)


@operator("layer_norm_quantize_static", lambda x, weight, bias, scale, eps, kind="int8": quantized(x, kind), LAYER_NORM)
def _layer_norm_quantize_static(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, eps: float, kind: str = "int8"
) -> Tensor:
    """The same, quantized with a scale."""
    return layernorm_quantization.run(x, weight, bias, eps, kind=kind, scale=scale).y_or_q


@operator("gated_activation", lambda gate, up, activation="silu": as_read(gate))
def _gated_activation(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """act(gate) * up; activation: "silu", "gelu" (by tanh), "relu" or "squared-relu"."""
    return gated_activation.run(gate, up, activation=activation).y_or_q


@operator(
    "gated_activation_quantize_per_token",
    lambda gate, up, smoother=None, activation="silu", kind="int8": scaled(gate, kind),
)
def _gated_activation_quantize_per_token(
    gate: Tensor, up: Tensor, smoother: Tensor | None = None, activation: str = "silu", kind: str = "int8"
) -> tuple[Tensor, Tensor]:
    """act(gate) * up / smoother, quantized: the integers and their scales."""
    return of_rows(*gated_activation.run(gate, up, smoother, activation=activation, kind=kind))


@operator(
    "gated_activation_quantize_static",
    lambda gate, up, scale, smoother=None, activation="silu", kind="int8": quantized(gate, kind),
)
def _gated_activation_quantize_static(
    gate: Tensor,
    up: Tensor,
    scale: Tensor,
    smoother: Tensor | None = None,
    activation: str = "silu",
    kind: str = "int8",
) -> Tensor:
    """The same, quantized with a scale."""
    return gated_activation.run(gate, up, smoother, activation=activation, kind=kind, scale=scale).y_or_q
