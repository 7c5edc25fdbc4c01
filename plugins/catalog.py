"""The plugins that execute a decoder layer; those that quantization puts there, and attention."""

from __future__ import annotations

from . import (
    gpt_attention,
    layernorm_quantization,
    quantize_per_token,
    quantize_tensor,
    rmsnorm_quantization,
    smooth_quant_gemm,
)

QUANTIZATION = (
    smooth_quant_gemm.PLUGIN,
    rmsnorm_quantization.PLUGIN,
    layernorm_quantization.PLUGIN,
    quantize_per_token.PLUGIN,
    quantize_tensor.PLUGIN,
)
ATTENTION = gpt_attention.PLUGIN
