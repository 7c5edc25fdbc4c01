"""What stands before a model's first layer, and behind its last one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...plugins import layernorm_quantization, rmsnorm_quantization
from ...plugins.lazy import torch
from .family import LAYER, Norm


@dataclass(frozen=True)
class Embedding:
    """Token ids to hidden states.

    Attributes:
        tokens: [vocab_size, hidden_size].
        positions: learned ones, [positions, hidden_size]; None where a family has none.
    """

    tokens: torch.Tensor
    positions: torch.Tensor | None = None

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """[sequences, tokens] -> [sequences, tokens, hidden_size]."""
        hidden = torch.nn.functional.embedding(ids, self.tokens)
        return hidden if self.positions is None else hidden + self.positions[: ids.shape[1]]

    def to(self, device: str | torch.device) -> Embedding:
        """The same on a device."""
        return self.map(lambda table: table.to(device))

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Embedding:
        """The same with both tables changed."""
        return Embedding(change(self.tokens), None if self.positions is None else change(self.positions))


def engine_norm(norm: Norm, x: torch.Tensor, own: Mapping[str, torch.Tensor], epsilon: float) -> torch.Tensor:
    """A norm as the plugin of its kind computes it.

    Args:
        x: [tokens, hidden_size].
        own: "weight" and, where the norm has one, "bias", [hidden_size].
    """
    if norm.kind == LAYER:
        return layernorm_quantization.layer_norm(x, own["weight"], own["bias"], epsilon)
    return rmsnorm_quantization.rms_norm(x, own["weight"], epsilon)
