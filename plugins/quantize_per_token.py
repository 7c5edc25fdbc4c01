"""QuantizePerToken: INT8 activations with one scale a token, found at run time."""

from __future__ import annotations

from . import int8
from .identity import FP8_ROWWISE, QSERVE, SMOOTHQUANT_PER_TOKEN, SMOOTHQUANT_STATIC, Plugin
from .lazy import torch

PLUGIN = Plugin(
    "QuantizePerToken",
    ("type_id", "quant_mode", "clamp_enabled", "sum_per_token"),
    "quantize_per_token_plugin",
    "input",
    SMOOTHQUANT_PER_TOKEN + FP8_ROWWISE + QSERVE,
    enabled_by=SMOOTHQUANT_STATIC,
    typed=False,
)


def reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q = round(x * 127 / max|x|) and scale = max|x| / 127, row by row.

    Args:
        x: [tokens, channels].

    Returns:
        int8 [tokens, channels] and float32 [tokens, 1]; a row of zeros has scale 0.
    """
    y = x.float()
    largest = y.abs().amax(-1, keepdim=True)
    return int8.saturate(y * (127 / largest.clamp_min(torch.finfo(torch.float32).tiny))), largest / 127
