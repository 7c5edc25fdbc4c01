"""QoQ: 4-bit weights, 8-bit activations and nothing but integers in the inner product (W4A8_QSERVE_*).

Per group, weights are rounded twice (progressive quantization). First to INT8 within [-119, 119], per output
channel; then that integer to 4 bits, per group of 128 input channels, with an integer scale:

    W ~ k8 s1,           s1 = max|W| / 119
    k8 ~ (k4 - z) s2,    s2 = (max k8 - min k8) / 15, z = round(-min k8 / s2), 0 <= k4, z <= 15

s2 is whole and at most ceil(238 / 15) = 16, so k4 s2 fits an unsigned byte, and |(k4 - z) s2| <= 119 + s2 / 2 <= 127 a
signed one: the kernel unfolds four weights with one 32-bit multiplication. Per channel there is one step only:

    W ~ (k4 - z) s1,     s1 = (max W - min W) / 15

Lin et al. 2024, "QServe: W4A8KV4 Quantization and System Co-design for Efficient LLM Serving", equations 5 to 7.
"""

from __future__ import annotations

from ...plugins.lazy import torch
from .quantized import QuantizedLinear
from .rounding import row_amax, stored

GROUP = 128
PROTECTED = 119
LEVELS = 15


def per_group(weight: torch.Tensor) -> QuantizedLinear:
    """Quantize progressively; each group takes the whole s2, above or below the quotient, that errs less.

    Args:
        weight: float32 [out, in], in a multiple of 128.

    Returns:
        k4 in [0, 15]; s2 in [1, 16] and z in [0, 15], int8 [out, in / 128]; as second scale s1, float16 [out].
    """
    s1 = stored(row_amax(weight) / PROTECTED, torch.float16)
    k8 = (weight / s1.float()[:, None]).round_().clamp_(-PROTECTED, PROTECTED).unflatten(1, (-1, GROUP))
    least, largest = k8.amin(2).clamp_max(0), k8.amax(2).clamp_min(0)
    quotient = (largest - least) / LEVELS
    below, above = (_second(k8, least, s2.clamp_min(1)) for s2 in (quotient.floor(), quotient.ceil()))
    take = below[3] < above[3]
    k4 = torch.where(take[..., None], below[0], above[0]).flatten(1).to(torch.int8)
    s2, zero = (torch.where(take, low, high).to(torch.int8) for low, high in zip(below[1:3], above[1:3], strict=True))
    return QuantizedLinear(k4, s2, zero, s1)


def _second(k8: torch.Tensor, least: torch.Tensor, s2: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """k4, s2, z and the squared error of rounding k8 [out, groups, 128] with scales s2 [out, groups]."""
    zero = (-least / s2).round_().clamp_(0, LEVELS)
    k4 = (k8 / s2[..., None]).round_().add_(zero[..., None]).clamp_(0, LEVELS)
    error = ((k4 - zero[..., None]) * s2[..., None] - k8).square_().sum(2)
    return k4, s2, zero, error


def per_channel(weight: torch.Tensor) -> QuantizedLinear:
    """Quantize a float32 [out, in] weight per output channel; 0 is among the values.

    Returns:
        k4 in [0, 15]; s1, float16 [out]; z in [0, 15], int8 [out].
    """
    least, largest = weight.amin(1).clamp_max(0), weight.amax(1).clamp_min(0)
    s1 = stored((largest - least) / LEVELS, torch.float16)
    zero = (-least / s1.float()).round_().clamp_(0, LEVELS)
    k4 = (weight / s1.float()[:, None]).round_().add_(zero[:, None]).clamp_(0, LEVELS)
    return QuantizedLinear(k4.to(torch.int8), s1, zero.to(torch.int8))
