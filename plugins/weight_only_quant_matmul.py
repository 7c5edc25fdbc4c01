"""WeightOnlyQuantMatmul: float activations times 8- or 4-bit weights with one scale per output channel."""

from __future__ import annotations

from .identity import INTEGER, WEIGHT_ONLY, Plugin
from .lazy import torch

PLUGIN = Plugin(
    "WeightOnlyQuantMatmul",
    ("type_id", "weight_type_id"),
    "weight_only_quant_matmul_plugin",
    "linear",
    WEIGHT_ONLY,
    gpus=INTEGER,
    in_multiple=64,
    out_multiple=32,
)
# weight_type_id by bits.
WEIGHT_TYPE = {8: 1, 4: 2}


def reference(x: torch.Tensor, weight: torch.Tensor, per_channel_scale: torch.Tensor) -> torch.Tensor:
    """y = x @ (weight * scale).T, the weight rounded to the engine's dtype before the product.

    Args:
        x: [tokens, in] in the engine's dtype.
        weight: int8 [out, in], unpacked.
        per_channel_scale: [out] in the engine's dtype.

    Returns:
        [tokens, out] in x's dtype.
    """
    dequantized = (weight.float() * per_channel_scale.float()[:, None]).to(x.dtype)
    return (x.float() @ dequantized.float().t()).to(x.dtype)
