"""What a family is put together of: norms, linears, groups of them, where files have them, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

Part = TypeVar("Part")
HEADS, ROWS, COLUMNS = "heads", "rows", "columns"
RMS, LAYER = "rms", "layer"
# What tells positions apart: channels of heads that are turned, i with i + d/2 or 2i with 2i + 1; a row added to each
# token's; or scores that fall with the distance, before or behind their scaling.
ROTARY, INTERLEAVED, LEARNED, ALIBI, SCALED_ALIBI = "rotary", "interleaved", "learned", "alibi", "scaled alibi"
# How attention and MLP are put together: see ``block``.
SEQUENTIAL, PARALLEL, SANDWICHED, BEHIND = "sequential", "parallel", "sandwiched", "behind"
# How the rows of a module that makes queries, keys and values follow each other.
STACKED, GROUPED = "stacked", "grouped"
# How experts' matrices follow each other in one: as many rows of each.
EVEN = "even"


@dataclass(frozen=True)
class Norm:
    """A norm of a layer, or the last one.

    Attributes:
        name: TensorRT-LLM's name inside a layer.
        tensor: Hugging Face's.
        kind: RMS (x / rms(x) * weight) or LAYER ((x - mean) / deviation * weight + bias).
        biased: a LAYER has a bias.
        size: name of the model dimension of its weight.
        rows: name of the dimension that counts heads with a weight each; None where there is one for all.
    """

    name: str
    tensor: str
    kind: str = RMS
    biased: bool = True
    size: str = "hidden_size"
    rows: str | None = None

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The last names of its tensors."""
        return ("weight", "bias") if self.kind == LAYER and self.biased else ("weight",)


@dataclass(frozen=True)
class View:
    """Where the weight and bias of a logical linear lie in a Hugging Face file.

    Attributes:
        tensor: the module that holds it, named inside the layer.
        piece: which of the linears that the module stacks; None for all of it.
        transposed: it is stored [in, out].
        order: STACKED one behind the other; GROUPED by heads of keys: the queries that meet one, its key, its value; or
            EVEN, one of all experts' matrices.
        bare: the weight has the module's name.
    """

    tensor: str
    piece: int | None = None
    transposed: bool = False
    order: str = STACKED
    bare: bool = False

    def named(self, suffix: str) -> str:
        """The name of the module's weight or bias."""
        return self.tensor if self.bare else f"{self.tensor}.{suffix}"


@dataclass(frozen=True)
class Linear:
    """One TensorRT-LLM linear layer.

    Attributes:
        name: TensorRT-LLM's name inside a layer.
        parts: the logical linears whose output rows it stacks, in order; Hugging Face's names inside a layer, where
            ``Family.views`` says nothing else.
        cut: how tensor parallelism cuts it: HEADS (each part by its heads), ROWS (out_features)
            or COLUMNS (in_features, followed by an all-reduce).
        out_features, in_features: names of the model dimensions, out_features one per part.
        bias: name of the model flag that gives it a bias; None where it never has one.
        stacked: TensorRT-LLM's name of the tensor that holds the matrices of all experts, where this is one of them.
        expert: its number among them.
    """

    name: str
    parts: tuple[str, ...]
    cut: str
    out_features: tuple[str, ...]
    in_features: str
    bias: str | None
    stacked: str | None = None
    expert: int | None = None


@dataclass(frozen=True)
class Group:
    """Linears that read one input and therefore share one smoothing factor.

    Exactly one of ``norm`` (the layer norm that makes the input) and ``feeder`` (the logical linear whose output rows
    become the input channels, up to an elementwise product or a weighted mean over tokens) is set; neither where a
    function that is not linear stands between.
    """

    name: str
    linears: tuple[str, ...]
    norm: str | None = None
    feeder: str | None = None


@dataclass(frozen=True)
class Mlp:
    """The linears of an MLP, or of one expert.

    Attributes:
        first: those that read its input.
        last: the one that makes its output.
        activated: which of the logical linears of the first ones goes through the MLP's function.
    """

    first: tuple[Linear, ...]
    last: Linear
    activated: int

    def activated_first(self, made: list[Part]) -> list[Part]:
        """What the logical linears make, in their order, with that in front which goes through the function."""
        return [made[self.activated], *made[: self.activated], *made[self.activated + 1 :]]
