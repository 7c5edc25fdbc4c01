"""A quantized model with all its layers in memory, for pass after pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..errors import InputError
from ..prove.layers import computed
from ..prove.proven import Executable
from .kernel_cache import cache_of
from .passes import Pass, Piece

# Positions whose logits are made at once.
ROWS = 256


class Network:
    """Computes the logits behind new tokens of sequences whose earlier tokens it has seen.

    Args:
        longest: tokens of the longest sequence that may come; the rotary embedding's tables are as long.

    Attributes:
        cache: keys and values of the sequences.
    """

    def __init__(self, proven: Executable, device: torch.device, longest: int):
        model = proven.model
        if not model.family.predicts_tokens:
            raise InputError(f"{proven.folder}: {model.architecture} predicts no tokens; nothing can be generated")
        if longest > model.longest:
            raise InputError(f"{longest} tokens are more than the {model.longest} positions of the model")
        self.model, self.device, self.longest = model, device, longest
        self.runtime = proven.runtime(longest, device)
        self.runtime.checks = False
        self.layers = [proven.executed(index, device).prepared() for index in range(model.num_hidden_layers)]
        self.embedding = proven.embedding().to(device)
        head = proven.head(device)
        self.head = replace(head.map(lambda tensor: tensor.to(device)), weight=head.weight.to(device).float())
        self.cache = cache_of(self.runtime.model, self.runtime.turns, self.runtime.dtype, device)
        self.runtime.attend = self.cache.attend

    @torch.inference_mode()
    def __call__(self, pieces: Sequence[Piece], ids: Sequence[int]) -> torch.Tensor:
        """Hidden states behind the last layer, [tokens, hidden_size].

        Args:
            pieces: of sequences.
            ids: their tokens, one piece behind the other.
        """
        now = Pass(pieces, self.device)
        self.cache.begin(now)
        hidden = self.embedding(torch.tensor([list(ids)], device=self.device), now.places[None])
        for index, layer in enumerate(self.layers):
            hidden = computed(self.runtime, index, layer, hidden)
        return hidden[0]

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [tokens, vocab_size] of some hidden states; the same to the bit in all processes that execute it."""
        logits = torch.cat([self.head.logits(self.head.normed(rows)) for rows in hidden.split(ROWS)])
        return self.runtime.peers.same(logits)
