"""QuantizePerToken: INT8 activations with one scale a token, found at run time."""

from __future__ import annotations

from . import int8
from .arithmetic import quotients, row_range
from .identity import Plugin
from .lazy import torch

PLUGIN = Plugin(
    "QuantizePerToken",
    ("type_id", "quant_mode", "clamp_enabled", "sum_per_token"),
    "quantize_per_token_plugin",
    "input",
    typed=False,
)


def reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q = round(x * (127 / max|x|)) and scale = max|x| / 127, row by row.

    Args:
        x: [tokens, channels] in the engine's dtype, which rounds the 1e-6 that stands for smaller maxima.

    Returns:
        int8 [tokens, channels] and float32 [tokens, 1].
    """
    to_int8, scale = quotients(127, row_range(x))
    return int8.saturate(x * to_int8), scale
