"""What a family says of a mixture of experts: what sends tokens to them, and their names."""

from __future__ import annotations

from dataclasses import dataclass

# Names of the logical linears of one MLP, by what they make of its input: up, gate, and down.
Names = tuple[str, str, str]


@dataclass(frozen=True)
class Gate:
    """A linear that is never quantized.

    Attributes:
        name: TensorRT-LLM's name inside a layer.
        tensor: Hugging Face's module.
        rows: name of the model dimension of its outputs; None for one.
        exact: checkpoints hold it in float32.
    """

    name: str
    tensor: str
    rows: str | None
    exact: bool = False


@dataclass(frozen=True)
class Mixture:
    """The MLP of a layer as experts, of which a router sends each token to some.

    Attributes:
        router: makes a score for every expert; the weights of those with the largest are their softmax.
        expert: with the number {e} in them.
        shared: of an expert that reads every token; None without one.
        shared_gate: whose sigmoid the shared expert's output is multiplied by.
        stacked: modules that hold the same matrix of all experts, rows of one behind rows of the other and that of down
            transposed; None where each has its own.
    """

    router: Gate
    expert: Names
    shared: Names | None = None
    shared_gate: Gate | None = None
    stacked: Names | None = None

    @property
    def gates(self) -> tuple[Gate, ...]:
        return (self.router,) if self.shared_gate is None else (self.router, self.shared_gate)
