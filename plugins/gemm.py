"""Gemm: cuBLAS for the matrix products that no other plugin computes; with quantized layers, lm_head alone."""

from __future__ import annotations

from dataclasses import replace

from .identity import Plugin

PLUGIN = Plugin(
    "Gemm",
    ("transa", "transb", "pad_lda", "pad_ldb", "pad_ldc", "type_id", "use_fp8", "alpha"),
    "gemm_plugin",
    "none",
)
# The same in layers whose linears are not quantized, and in models without any that are: there gate and up are one,
# if between them stands one of these functions.
IN_LAYER = replace(PLUGIN, site="linear")
IN_FUSED_LAYER = replace(PLUGIN, site="fused linear")
FUSED_FUNCTIONS = ("silu", "gelu")
