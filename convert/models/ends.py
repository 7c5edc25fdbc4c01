"""What stands before a model's first layer, and behind its last one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ...plugins import layernorm_quantization, rmsnorm_quantization
from ...plugins.float_product import of_few_rows, summed_wide
from ...plugins.lazy import torch
from ...plugins.rmsnorm_quantization import Normed
from .model import Model
from .pieces import LAYER, Norm

Change = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Embedding:
    """Token ids to hidden states.

    Attributes:
        model: says what is done with what is looked up.
        tokens: [vocab_size, hidden_size].
        positions: learned ones, [positions, hidden_size]; None where a family has none.
        norm: "weight" and "bias" of a norm behind, [hidden_size]; empty where a family has none.
        types: of tokens, [types, hidden_size]; None where a family has none.
    """

    model: Model
    tokens: torch.Tensor
    positions: torch.Tensor | None = None
    norm: Mapping[str, torch.Tensor] = field(default_factory=dict)
    types: torch.Tensor | None = None

    def __call__(self, ids: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        """[sequences, tokens] -> [sequences, tokens, hidden_size].

        Args:
            places: of tokens in their sequences, [sequences, tokens]; from the first on if None.
        """
        family = self.model.family
        hidden = torch.nn.functional.embedding(ids, self.tokens)
        if self.model.embedding_scale != 1:
            hidden = hidden * torch.tensor(self.model.embedding_scale, dtype=hidden.dtype)
        if self.positions is not None:
            known = self.positions[self.model.first_position :]
            hidden = hidden + (known[: ids.shape[1]] if places is None else known[places])
        if self.types is not None:
            hidden = hidden + self.types[0]
        if family.embedding_norm is not None:
            flat = hidden.view(-1, hidden.shape[-1])
            hidden = engine_norm(family.embedding_norm, flat, self.norm, self.model.norm_epsilon).view(hidden.shape)
        return hidden

    def to(self, device: str | torch.device) -> Embedding:
        """The same on a device."""
        return self.map(lambda table: table.to(device))

    def map(self, change: Change) -> Embedding:
        """The same with all tensors changed."""
        positions, types = (None if table is None else change(table) for table in (self.positions, self.types))
        norm = {suffix: change(tensor) for suffix, tensor in self.norm.items()}
        return replace(self, tokens=change(self.tokens), positions=positions, norm=norm, types=types)


@dataclass(frozen=True)
class Head:
    """Hidden states behind the last layer to logits.

    Attributes:
        model: says what is done with logits.
        norm: "weight" of the last norm, and "bias" where it has one, [hidden_size].
        weight: the output projection, [vocab_size, hidden_size].
        bias: [vocab_size]; None where a family has none.
    """

    model: Model
    norm: Mapping[str, torch.Tensor]
    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden_size] behind the last norm, wherever they are."""
        own = {suffix: tensor.to(hidden.device) for suffix, tensor in self.norm.items()}
        return engine_norm(self.model.family.last_norm, hidden, own, self.model.norm_epsilon)

    def logits(self, normed: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[tokens, hidden_size] behind the last norm -> [tokens, vocab_size], float32 on a GPU, else of the weight.

        Args:
            out: where they are put, if not in memory of their own.
        """
        normed = normed.to(self.weight.dtype)
        if out is not None:
            logits = torch.mm(normed, self.weight.t(), out=out)
        elif normed.is_cuda:
            logits = summed_wide(normed, self.weight)
        else:
            logits = of_few_rows(normed, self.weight)
        if self.bias is not None:
            logits += self.bias
        if self.model.logit_scale != 1:
            logits *= self.model.logit_scale
        cap = self.model.logit_cap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def map(self, change: Change) -> Head:
        """The same with all tensors changed."""
        norm = {suffix: change(tensor) for suffix, tensor in self.norm.items()}
        bias = None if self.bias is None else change(self.bias)
        return replace(self, norm=norm, weight=change(self.weight), bias=bias)


def engine_norm(norm: Norm, x: torch.Tensor, own: Mapping[str, torch.Tensor], epsilon: float) -> torch.Tensor:
    """A norm as the plugin of its kind computes it.

    Args:
        x: [tokens, hidden_size].
        own: "weight" and, where the norm has one, "bias", [hidden_size].
    """
    return quantizing_norm(norm, x, own, epsilon).y_or_q


def quantizing_norm(
    norm: Norm,
    x: torch.Tensor,
    own: Mapping[str, torch.Tensor],
    epsilon: float,
    kind: str | None = None,
    scale: torch.Tensor | None = None,
) -> Normed:
    """The same, whose output is quantized: as ``rmsnorm_quantization.reference``."""
    if norm.kind == LAYER:
        return layernorm_quantization.run(x, own["weight"], own.get("bias"), epsilon, kind=kind, scale=scale)
    return rmsnorm_quantization.run(x, own["weight"], epsilon, kind=kind, scale=scale)
