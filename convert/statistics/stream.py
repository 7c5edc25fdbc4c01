"""Calibration tokens on their way through the layers of a model, one layer after the other."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..device import fast_dtype
from ..errors import InputError
from ..models.ends import Embedding, Head
from ..models.forward import LayerForward
from ..models.layer import Layer, Tensors
from ..models.model import Model
from .calibrate import Walk, calibrate_layer
from .layer import LayerStatistics
from .wanted import Wanted

# Rows of the output projection that tokens are multiplied with at once.
HEAD_ROWS = 8192
# Calibration tokens in one forward pass: large enough for the matrix units, small enough for the cache.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}


class Calibration:
    """The hidden states of all calibration tokens.

    Args:
        ids: int64 [sequences, tokens].
        embedding: of the model, or of the rotated one.
        wanted: what is gathered at every layer.
        walks: every layer is quantized on the way, by ``walk``; else all go through ``layer``.
        plain: groups of whose inputs nobody wants more than ranges.
        everyone: every expert sees every token.

    Attributes:
        hidden: [sequences, tokens, hidden_size].
    """

    def __init__(
        self,
        model: Model,
        ids: torch.Tensor,
        embedding: Embedding,
        wanted: Wanted,
        device: torch.device,
        seed: int,
        walks: bool = False,
        plain: frozenset[str] = frozenset(),
        everyone: bool = False,
    ):
        self.model, self.wanted, self.seed, self.plain = model, wanted, seed, plain
        self.forward = LayerForward(model, ids.shape[1], fast_dtype(device), device, not walks, everyone)
        self.hidden = embedding.to(device)(ids.to(device)).to(fast_dtype(device))
        self.batch = max(1, BATCH_TOKENS[device.type] // ids.shape[1])

    def layer(
        self, index: int, tensors: Tensors, on_tokens: Callable[[int], None] = lambda tokens: None
    ) -> LayerStatistics:
        """The statistics of the next layer, of which these are the Hugging Face tensors."""
        self.forward.load(index, tensors)
        statistics = calibrate_layer(
            self.forward, self.hidden, self.wanted, self.seed, self.batch, on_tokens, self.plain
        )
        statistics.hidden_amax = self.largest()
        self.forward.tensors = {}
        return statistics

    def walk(self, index: int, layer: Layer, on_tokens: Callable[[int], None] = lambda tokens: None) -> Walk:
        """The next layer, quantized while tokens pass through it."""
        return Walk(self.forward, index, layer, self.hidden, self.wanted, self.seed, self.batch, on_tokens, self.plain)

    def largest_normed(self, head: Head) -> float:
        """The largest |output| of the model's last norm."""
        return max(float(head.normed(one).abs().max()) for one in self.hidden)

    def largest_logit(self, head: Head, enough: float) -> float:
        """The largest |logit|, or a bound on it that is not above ``enough``: the longest norm's output times the
        longest row of the output projection, and its largest bias; logits themselves take as long as some layers."""
        lengths = [torch.linalg.vector_norm(piece.float(), dim=1).max() for piece in head.weight.split(HEAD_ROWS)]
        rows, bound = torch.stack(lengths).max(), 0.0
        added = 0.0 if head.bias is None else float(head.bias.abs().max())
        for normed in (head.normed(one).float() for one in self.hidden):
            longest = float(torch.linalg.vector_norm(normed, dim=1).max() * rows) + added
            if not longest <= enough:
                pieces = head.weight.to(normed.device).split(HEAD_ROWS)
                longest = max(float((normed @ piece.float().T).abs().max()) for piece in pieces) + added
            bound = max(bound, longest)
        return bound * head.model.logit_scale

    def largest(self) -> float:
        """The largest |hidden state|."""
        return float(torch.maximum(self.hidden.max(), -self.hidden.min()))


def calibration_dtype(device: torch.device) -> str:
    """Name of the dtype that layers compute in."""
    return str(fast_dtype(device)).removeprefix("torch.")


def check_range(largest: float, dtype: str, layer: int) -> None:
    """The engine keeps hidden states in its dtype: the largest of a layer's must be a number, and fit."""
    if not math.isfinite(largest):
        where = "in float16; use --dtype bfloat16" if dtype == "float16" else "on this text"
        raise InputError(f"hidden states of layer {layer} are not finite; the model does not work {where}")
    if dtype == "float16" and largest > torch.finfo(torch.float16).max:
        raise InputError(f"hidden states of layer {layer} reach {largest:.3g}, beyond float16; use --dtype bfloat16")
