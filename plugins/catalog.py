"""The plugins that execute a decoder layer; those that quantization puts there, and attention."""

from __future__ import annotations

from . import (
    bert_attention,
    fp8_rowwise_gemm,
    gpt_attention,
    layernorm_quantization,
    qserve_gemm,
    quantize_per_token,
    quantize_tensor,
    rmsnorm_quantization,
    smooth_quant_gemm,
    weight_only_groupwise_quant_matmul,
    weight_only_quant_matmul,
)

QUANTIZATION = (
    smooth_quant_gemm.PLUGIN,
    rmsnorm_quantization.PLUGIN,
    layernorm_quantization.PLUGIN,
    quantize_per_token.PLUGIN,
    quantize_tensor.PLUGIN,
    weight_only_quant_matmul.PLUGIN,
    weight_only_groupwise_quant_matmul.PLUGIN,
    fp8_rowwise_gemm.PLUGIN,
    qserve_gemm.PLUGIN,
)
ATTENTION, ENCODER_ATTENTION = gpt_attention.PLUGIN, bert_attention.PLUGIN
