"""What a model's attention computes, as the plugin describes it."""

from __future__ import annotations

import math

from ...plugins.gpt_attention import Heads
from ...plugins.lazy import torch
from .model import Model
from .pieces import INTERLEAVED, SCALED_ALIBI


def heads_of(model: Model, layer: int) -> Heads:
    """The attention of one layer."""
    scale = model.head_size**-0.5
    slopes = slopes_of(model) if model.family.alibi else None
    if slopes is not None and model.family.positions == SCALED_ALIBI:
        slopes = slopes * scale
    return Heads(
        model.num_attention_heads,
        model.num_key_value_heads,
        model.head_size,
        scale / model.q_scaling,
        model.attention_cap,
        model.window_of(layer),
        slopes,
        model.family.positions == INTERLEAVED,
        model.family.task is None,
    )


def slopes_of(model: Model) -> torch.Tensor:
    """ALiBi's slopes of the heads that are here, float32 [heads]."""
    parts, which = model.share
    return alibi_slopes(model.num_attention_heads * parts, model.alibi_bias_max).chunk(parts)[which]


def alibi_slopes(heads: int, most: float = 8.0) -> torch.Tensor:
    """2^(-most i / heads) for i from 1 on, float32 [heads]; where heads are no power of two, those of the power below,
    then every other one of the power above."""
    power = 2 ** math.ceil(math.log2(heads))
    slopes = 2.0 ** (-most / power * torch.arange(1, power + 1, dtype=torch.float64))
    return (slopes if power == heads else torch.cat((slopes[1::2], slopes[::2]))[:heads]).float()
