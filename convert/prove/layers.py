"""A decoder layer of a quantized model, executed as the one that reads it does."""

from __future__ import annotations

import torch

from ...plugins import kernels
from ..models import block
from .engine_layer import ExecutedLayer
from .fused import FusedFunctions
from .layer_functions import LayerFunctions
from .runtime import Runtime


def computed(runtime: Runtime, index: int, layer: ExecutedLayer, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states behind layer ``index``, of those before it, [batch, tokens, hidden_size]."""
    functions = LayerFunctions if runtime.checks or not kernels.behind(hidden) else FusedFunctions
    return block.finished(block.steps(runtime.model.family, functions(runtime, index, layer, hidden.shape), hidden))
