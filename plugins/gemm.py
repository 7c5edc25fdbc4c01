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
# The same in the layers of a model whose linears are not quantized.
IN_LAYER = replace(PLUGIN, site="linear")
