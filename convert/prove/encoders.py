"""Encoders: how far what a checkpoint gives is from what its source gives, on the same sequences."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import functional


@dataclass
class EncoderAccuracy:
    """What an encoder's checkpoint computes beside the source model.

    Attributes:
        tokens: in all sequences.
        distance: ||hidden - source's|| / ||source's|| behind the last layer, over all tokens.
        cosine: mean over tokens of the cosine between both.
        kl: mean KL(source || checkpoint) in nats, over sequences: of their classes, or of where an answer begins and
            where it ends; None where nothing like that is predicted.
        top1: share of these for which both give the same most likely class or token; None likewise.
        layer_errors, beyond, few_tokens_error, many_tokens_error: as in ``Accuracy``.
    """

    tokens: int
    distance: float
    cosine: float
    kl: float | None = None
    top1: float | None = None
    layer_errors: list[float] = field(default_factory=list)
    beyond: str | None = None
    few_tokens_error: float | None = None
    many_tokens_error: float | None = None

    @property
    def own_figures(self) -> dict[str, float]:
        """What decoders have not, by the names that JSON has for it."""
        return {"distance_percent": 100 * self.distance, "cosine": self.cosine}


def compare_scores(of_classes: bool, wanted: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    """Mean KL(wanted || got), and the share of equal most likely ones, float64 [2].

    Args:
        of_classes: scores are [sequences, classes]; else [sequences, tokens, 2], one distribution over tokens for the
            beginning of an answer and one for its end.
    """
    axis = -1 if of_classes else 1
    p, q = (functional.log_softmax(scores.double(), axis) for scores in (wanted, got))
    divergence = (p.exp() * (p - q)).sum(axis).mean()
    same = (p.argmax(axis) == q.argmax(axis)).double().mean()
    return torch.stack((divergence, same)).cpu()
