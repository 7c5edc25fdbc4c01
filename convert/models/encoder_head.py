"""What stands behind an encoder's last layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from ...plugins.lazy import torch
from .model import Model
from .task import Projection


@dataclass(frozen=True)
class EncoderHead:
    """Hidden states behind the last layer to what an engine gives.

    Attributes:
        weights, biases: [rows, hidden_size] and [rows], by TensorRT-LLM's name of the projection.
    """

    model: Model
    weights: Mapping[str, torch.Tensor]
    biases: Mapping[str, torch.Tensor]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[sequences, tokens, hidden_size] -> scores, [sequences, tokens, num_labels] or, of the first tokens,
        [sequences, num_labels], in what the last projection is kept in; the hidden states where nothing projects."""
        task, made = self.model.task, hidden
        if task.of_first_token:
            made = hidden[:, 0]
        for place, projection in enumerate(task.projections):
            read = torch.tanh(made).to(hidden.dtype) if place else made
            weight, bias = self.weights[projection.name].float(), self.biases[projection.name].float()
            dtype = getattr(torch, projection.dtype) if projection.dtype else hidden.dtype
            made = torch.nn.functional.linear(read.float(), weight, bias).to(dtype)
        return made

    def map(self, change: Callable[[Projection, str, torch.Tensor], torch.Tensor]) -> EncoderHead:
        """The same with all tensors changed, each by its projection and last name."""
        projections = {projection.name: projection for projection in self.model.task.projections}
        weights = {name: change(projections[name], "weight", weight) for name, weight in self.weights.items()}
        biases = {name: change(projections[name], "bias", bias) for name, bias in self.biases.items()}
        return replace(self, weights=weights, biases=biases)

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor by TensorRT-LLM's full name."""
        for name, weight in self.weights.items():
            yield f"{name}.weight", weight
            yield f"{name}.bias", self.biases[name]


def read_head(model: Model, read: Callable[[Projection, str], torch.Tensor]) -> EncoderHead:
    """The head of tensors that are read by projection and last name."""
    projections = model.task.projections
    weights, biases = ({p.name: read(p, suffix) for p in projections} for suffix in ("weight", "bias"))
    return EncoderHead(model, weights, biases)
