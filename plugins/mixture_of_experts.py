"""MixtureOfExperts: each token goes through the experts with its largest scores, weighted by their softmax."""

from __future__ import annotations

from .identity import Plugin
from .lazy import torch

# The fields that quantization and routing set; the plugin has many more.
PLUGIN = Plugin(
    "MixtureOfExperts",
    (
        "number_of_experts",
        "experts_per_token",
        "expert_hidden_size",
        "expert_inter_size",
        "weight_type_id",
        "quant_mode",
    ),
    "moe_plugin",
    "experts",
)


def route(scores: torch.Tensor, most: int, normalize: bool) -> torch.Tensor:
    """What each expert's output counts for each token: 0 where a token is not sent to it.

    softmax(scores) of the ``most`` largest; divided by their sum if ``normalize``, else as they are.

    Args:
        scores: float32 [tokens, experts], of the router.

    Returns:
        float32 [tokens, experts].
    """
    shares = scores.float().softmax(-1)
    largest, which = shares.topk(most, -1)
    if normalize:
        largest = largest / largest.sum(-1, keepdim=True)
    return torch.zeros_like(shares).scatter_(-1, which, largest)


class Routed:
    """Tokens on their way through experts: what each reads, and the sum of what they make.

    Args:
        x: [tokens, hidden_size].
        shares: ``route``'s, [tokens, experts].
        everyone: every expert reads all tokens, whatever comes of it; the sum stays what it is.
    """

    def __init__(self, x: torch.Tensor, shares: torch.Tensor, everyone: bool = False):
        self.x, self.shares, self.everyone = x, shares, everyone
        self.total = torch.zeros_like(x)
        self.chosen: torch.Tensor | None = None

    def read(self, expert: int) -> torch.Tensor:
        """The tokens that an expert reads, [its tokens, hidden_size]."""
        if self.everyone:
            self.chosen = torch.arange(len(self.x), device=self.x.device)
        else:
            self.chosen = self.shares[:, expert].nonzero()[:, 0]
        return self.x[self.chosen]

    def add(self, expert: int, made: torch.Tensor) -> None:
        """What the expert that read last has made of them, in the order that it read."""
        assert self.chosen is not None
        share = self.shares[self.chosen, expert, None]
        self.total.index_add_(0, self.chosen, (made.float() * share).to(made.dtype))
