"""A quantized model with all its layers in memory, for pass after pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ...plugins.float_product import sums_wide
from ..errors import InputError
from ..prove.layers import computed
from ..prove.proven import Executable
from .graphs import Graphs
from .kernel_cache import KernelCache, cache_of
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
        weight = head.weight.to(device)
        narrow = device.type == "cuda" and weight.dtype == self.runtime.dtype and sums_wide()
        self.head = replace(head.map(lambda tensor: tensor.to(device)), weight=weight if narrow else weight.float())
        self.cache = cache_of(self.runtime.model, self.runtime.turns, self.runtime.dtype, device)
        self.runtime.attend = self.cache.attend
        recorded = device.type == "cuda" and isinstance(self.cache, KernelCache) and model.family.mixture is None
        self.graphs = Graphs(self.passed, self.cache, device) if recorded else None

    def reserve(self, sequences: int, tokens: int) -> None:
        """Let the cache have room for what is to come where passes are recorded: they are of no use when it moves."""
        if self.graphs is not None:
            self.cache.make_room(sequences, tokens)

    @torch.inference_mode()
    def __call__(self, pieces: Sequence[Piece], ids: Sequence[int]) -> torch.Tensor:
        """Hidden states behind the last layer, [tokens, hidden_size].

        Args:
            pieces: of sequences.
            ids: their tokens, one piece behind the other.
        """
        if self.graphs is not None and self.graphs.takes(pieces):
            return self.graphs(pieces, ids)
        now = Pass(pieces, self.device)
        self.cache.begin(now)
        return self.passed(now, torch.tensor([list(ids)], device=self.device))[0]

    def passed(self, now: Pass, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states [1, tokens, hidden_size] of a pass that the cache has begun; ids: [1, tokens]."""
        hidden = self.embedding(ids, now.places[None])
        for index, layer in enumerate(self.layers):
            hidden = computed(self.runtime, index, layer, hidden)
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [tokens, vocab_size] of some hidden states; the same to the bit in all processes that execute it."""
        logits = torch.cat([self.head.logits(self.head.normed(rows)) for rows in hidden.split(ROWS)])
        return self.runtime.peers.same(logits)
