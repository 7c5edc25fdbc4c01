"""What a model family says in data: its tensors, how they are cut, and how a layer is put together.

A family names its Hugging Face tensors and TensorRT-LLM's names for the same things side by side. Everything else (what
a layer computes, tensor layout, smoothing groups, sharding, the runtime) is derived from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..files.reader import Reader

HEADS, ROWS, COLUMNS = "heads", "rows", "columns"
RMS, LAYER = "rms", "layer"
ROTARY, LEARNED = "rotary", "learned"


@dataclass(frozen=True)
class Norm:
    """A norm of a layer, or the last one.

    Attributes:
        name: TensorRT-LLM's name inside a layer.
        tensor: Hugging Face's.
        kind: RMS (x / rms(x) * weight) or LAYER ((x - mean) / deviation * weight + bias).
    """

    name: str
    tensor: str
    kind: str = RMS

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The last names of its tensors."""
        return ("weight", "bias") if self.kind == LAYER else ("weight",)


@dataclass(frozen=True)
class View:
    """Where the weight and bias of a logical linear lie in a Hugging Face file.

    Attributes:
        tensor: the module that holds it, named inside the layer.
        piece: which of the linears that the module stacks, in the order of ``Linear.parts``; None for all of it.
        transposed: it is stored [in, out].
    """

    tensor: str
    piece: int | None = None
    transposed: bool = False


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
    """

    name: str
    parts: tuple[str, ...]
    cut: str
    out_features: tuple[str, ...]
    in_features: str
    bias: str | None


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
class Family:
    """A family of decoders.

    Attributes:
        architectures: Hugging Face's classes; TensorRT-LLM's have the same names.
        embedding, head: full names of the tensors; layer: the prefix of a layer's.
        final_norm: the norm before the output projection, by its full name.
        norms: of a layer, in the order in which they are computed.
        linears: qkv and dense of the attention, then those of the MLP, the last of which makes its output.
        spellings: what config.json calls it besides: old class names, model_type.
        ignored: endings of names that files may hold and nothing reads.
        views: logical linears that are not a whole Hugging Face linear of the same name.
        positions: ROTARY, or LEARNED from the tensor ``position_embedding``, a row a position.
        query_key_norms: norms of every head's query and key before they are rotated, of one weight for all heads.
        keys: config.json's names of the sizes, by ours, where they are not ours.
        implied: sizes that follow from others, and that config.json does not state.
        defaults: what transformers takes for a key that config.json does not have, by our name.
        activations: config.json's names of functions that this family may have, and TensorRT-LLM's.
        norm_epsilon: what transformers takes where config.json does not say.
        tied: the embedding is the output projection, where config.json does not say.
        read: what else config.json says: fields of ``Model``; raises InputError for what cannot be converted.
        config: keys of a checkpoint's config.json that are this family's own; of a ``Model``.
        since: the first TensorRT-LLM release whose engines know it.
        reduce_fusion: an engine may fuse its all-reduce with the norm behind it.
        refused: algorithms whose engine does not compute this family, and why.
    """

    architectures: tuple[str, ...]
    embedding: str
    final_norm: Norm
    head: str
    layer: str
    norms: tuple[Norm, ...]
    linears: tuple[Linear, ...]
    groups: tuple[Group, ...]
    ignored: tuple[str, ...]
    read: Callable[[Reader], dict[str, Any]]
    config: Callable[[Any], dict[str, Any]]
    spellings: tuple[str, ...] = ()
    views: Mapping[str, View] = field(default_factory=dict)
    positions: str = ROTARY
    position_embedding: str | None = None
    query_key_norms: tuple[Norm, Norm] | None = None
    keys: Mapping[str, str] = field(default_factory=lambda: {"norm_epsilon": "rms_norm_eps", "head_size": "head_dim"})
    implied: tuple[str, ...] = ()
    defaults: Mapping[str, int] = field(default_factory=dict)
    activations: Mapping[str, str] = field(default_factory=lambda: {"silu": "silu", "swish": "silu"})
    norm_epsilon: float = 1e-6
    tied: bool = False
    since: str = "0.16.0"
    reduce_fusion: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)

    def key(self, name: str) -> str:
        """config.json's name of a size."""
        return self.keys.get(name, name)

    def linear(self, name: str) -> Linear:
        return next(linear for linear in self.linears if linear.name == name)

    def norm(self, name: str) -> Norm:
        return next(norm for norm in self.all_norms if norm.name == name)

    @property
    def all_norms(self) -> tuple[Norm, ...]:
        """Every norm of a layer, those of queries and keys too."""
        return self.norms + (self.query_key_norms or ())

    def view(self, part: str) -> View:
        return self.views.get(part, View(part))

    def linear_of_part(self, part: str) -> Linear:
        """The fused linear that holds a logical linear."""
        return next(linear for linear in self.linears if part in linear.parts)

    def group_of(self, linear: str) -> Group:
        return next(group for group in self.groups if linear in group.linears)

    @property
    def rotates(self) -> bool:
        """Whether its norms, and what else reads the residual stream, commute with a rotation of it."""
        return all(norm.kind == RMS for norm in (*self.norms, self.final_norm)) and self.position_embedding is None

    @property
    def attention(self) -> tuple[str, str, str]:
        """The logical linears that make queries, keys and values."""
        query, key, value = next(linear.parts for linear in self.linears if linear.cut == HEADS)
        return query, key, value

    def parts(self, group: Group) -> list[str]:
        """The logical linears that read a group's input."""
        return [part for name in group.linears for part in self.linear(name).parts]

    def group_of_part(self, part: str) -> Group:
        """The group that holds a logical linear."""
        return self.group_of(self.linear_of_part(part).name)
