"""Perplexity of a transformers model as `enginesmith verify` defines it; for the environments of peers too."""

from __future__ import annotations

import math

import torch
from torch.nn import functional


def perplexity(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """exp of the mean negative log-likelihood over every chunk's tokens but its first, logits in float32.

    Args:
        ids: int64 [chunks, tokens].
    """
    total = 0.0
    with torch.inference_mode():
        for chunk in ids:
            logits = model(chunk[None], use_cache=False).logits[0, :-1].float()
            total += float(functional.cross_entropy(logits, chunk[1:], reduction="sum"))
    return math.exp(total / ids[:, 1:].numel())
