"""What an encoder's engine gives: hidden states, or what projections behind the last layer make of them.

no projection      the hidden states
one                of every token: scores of being the first and the last of an answer
two                of the first token, a tanh between them: scores of classes
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Projection:
    """A linear behind the last layer, with a bias; every rank holds it whole.

    Attributes:
        name: TensorRT-LLM's.
        tensor: Hugging Face's.
        size: name of the model dimension of its rows.
        dtype: what an engine keeps it in; None for its own.
    """

    name: str
    tensor: str
    size: str
    dtype: str | None = None


@dataclass(frozen=True)
class Task:
    """What an encoder is for; projections: one behind the other."""

    projections: tuple[Projection, ...] = ()

    @property
    def of_first_token(self) -> bool:
        """Whether it predicts one thing of a whole sequence."""
        return len(self.projections) > 1
