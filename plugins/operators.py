"""What plugins compute, as PyTorch operators: importing this module registers ``torch.ops.enginesmith.*``.

A kernel computes them on a GPU, the plugin's reference elsewhere, with the same integers. They can be compiled,
exported and captured in CUDA graphs; nothing is differentiated. Matrices are [tokens, channels] in float16 or bfloat16,
``kind`` is "int8" or "fp8" (e4m3), scales are float32: one a token [tokens, 1] where they are found at run time, [1]
where they are static (INT8: 127 / range, by which values are multiplied; FP8: range / 448, by which they are divided).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import (
    fp8_rowwise_gemm,
    gated_activation,
    layernorm_quantization,
    qserve_gemm,
    quantize_per_token,
    quantize_tensor,
    rmsnorm_quantization,
    smooth_quant_gemm,
    weight_only_groupwise_quant_matmul,
)
from .operator_arguments import (
    DTYPES,
    FP8_PRODUCT,
    LAYER_NORM,
    PACKED_PRODUCT,
    PRODUCT,
    QSERVE_PER_CHANNEL,
    QSERVE_PER_GROUP,
    RULES,
    check,
)
from .operator_registration import operator
from .operators_attention import _kv_cache_attention, _kv_cache_store  # noqa: F401


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


@operator(
    "weight_only_gemm",
    lambda x, packed, scale, *_, **__: x.new_empty((x.shape[0], scale.shape[1])),
    PACKED_PRODUCT,
)
def _weight_only_gemm(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    prequant: Tensor | None = None,
    bias: Tensor | None = None,
    bits: int = 4,
    layout: str = "rows",
) -> Tensor:
    """(x * prequant) @ (integers * scale + zero).T + bias; integers packed as AWQ's files ("rows") or for one SM."""
    return weight_only_groupwise_quant_matmul.run_packed(
        x, packed, scale, prequant, zero, bias=bias, bits=bits, layout=layout
    )


def qserve_product(x: Tensor, packed: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], packed.shape[0]), dtype=torch.float16)


@operator(
    "qserve_gemm_per_group",
    lambda x, act_scales, packed, *_, **__: qserve_product(x, packed),
    QSERVE_PER_GROUP,
)
def _qserve_gemm_per_group(
    x: Tensor, act_scales: Tensor, packed: Tensor, s1_scales: Tensor, s2_scales: Tensor, s2_zeros: Tensor
) -> Tensor:
    """(x @ (integers * s2 + z2).T) * s1 * act_scales; see ``qserve_gemm.reference_packed_per_group``."""
    return qserve_gemm.run_packed_per_group(x, act_scales, packed, s1_scales, s2_scales, s2_zeros)


@operator(
    "qserve_gemm_per_channel",
    lambda x, act_scales, act_sums, packed, *_, **__: qserve_product(x, packed),
    QSERVE_PER_CHANNEL,
)
def _qserve_gemm_per_channel(
    x: Tensor, act_scales: Tensor, act_sums: Tensor, packed: Tensor, s1_scales: Tensor, s1_szeros: Tensor
) -> Tensor:
    """(x @ integers.T) * s1 * act_scales - szeros * act_sums; see ``qserve_gemm.reference_packed_per_channel``."""
    return qserve_gemm.run_packed_per_channel(x, act_scales, act_sums, packed, s1_scales, s1_szeros)


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
