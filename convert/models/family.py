"""What a model family says in data: its tensors, how they are cut, and how a layer is put together.

A family names its Hugging Face tensors and TensorRT-LLM's names for the same things side by side. Everything else (what
a layer computes, tensor layout, smoothing groups, sharding, the runtime) is derived from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..files.reader import Reader
from .mixture import Gate, Mixture
from .pieces import (
    ALIBI,
    HEADS,
    INTERLEAVED,
    LEARNED,
    RMS,
    ROTARY,
    SCALED_ALIBI,
    SEQUENTIAL,
    STACKED,
    Group,
    Linear,
    Mlp,
    Norm,
    View,
)
from .rope import Rope
from .task import Task


@dataclass(frozen=True)
class Family:
    """A family of decoders, or of encoders.

    Attributes:
        title: what people call its models.
        architectures: Hugging Face's classes; TensorRT-LLM's have the same names, but where ``written`` says otherwise.
        embedding, head: full names of the tensors; layer: the prefix of a layer's.
        final_norm: the norm before the output projection, by its full name; an encoder has neither.
        task: what an encoder is for; None for a decoder.
        classifies: a decoder whose output projection has a row for each class, of a sequence's last token.
        engine_layer, engine_embedding: TensorRT-LLM's prefixes of a layer's tensors, and of the embedding's.
        arrangement: SEQUENTIAL, PARALLEL, SANDWICHED or BEHIND.
        norms: of a layer, in the order in which they are computed.
        linears: qkv and dense of the attention, then those of the MLP, the last of which makes its output.
        spellings: what config.json calls it besides: old class names, model_type.
        ignored: endings of names that files may hold and nothing reads.
        views: logical linears that are not a whole Hugging Face linear of the same name.
        when: whether it is this family that a config.json (of a model or a checkpoint) describes, where several have
            one class.
        positions: ROTARY, INTERLEAVED, ALIBI, SCALED_ALIBI, or LEARNED from the tensor ``position_embedding``, a row a
            position, from the row ``first_position`` on.
        positions_behind_padding: the first token's position is the one behind the padding token's number.
        type_embedding: full name of a table whose first row is added to every token's.
        embedding_norm: a norm of what the embedding makes, by its full name.
        biased: its linears have biases, where a checkpoint does not say.
        norm_offset: what is added to every norm's stored weight.
        query_key_norms: norms of every head's query and key before they are rotated.
        activated: the logical linear of the MLP that goes through its function; the first one if not said.
        mixture: experts in place of the MLP; of one model's family ``experts`` are theirs, and ``shared`` the one that
            reads every token (see ``experts.spread``).
        head_bias: full name of the output projection's bias.
        normalized_head: the output projection's rows are divided by their lengths.
        one_all_reduce: an engine sums attention and MLP before the ranks are summed.
        pipelined: its engine can be cut into stages.
        four_times: its engine knows no other width of the MLP than four times the hidden size;
            four_times_unsaid: it is so where config.json does not say.
        fixed_epsilon: its engine takes 1e-5 in some norm, whatever config.json says.
        rope: what transformers takes where config.json does not say.
        partly_turned: its engine turns a part of each head where it is asked to.
        rope_types: how its engine scales frequencies.
        shares_embedding: its engine has no output projection but the embedding, where the two are tied.
        cuts_embedding: ranks share the embedding's rows, whatever a checkpoint says.
        keys: config.json's names of the sizes, by ours, where they are not ours.
        implied: sizes that follow from others, and that config.json does not state.
        defaults: what transformers takes for a key that config.json does not have, by our name.
        activations: config.json's names of functions that this family may have, and TensorRT-LLM's.
        norm_epsilon: what transformers takes where config.json does not say.
        tied: the embedding is the output projection, where config.json does not say.
        read: what else config.json says: fields of ``Model``; raises InputError for what cannot be converted.
        config: keys of a checkpoint's config.json that are this family's own; of a ``Model``.
        stated: the inverse: fields of ``Model`` that a checkpoint's config.json says, or that all of the family have.
        written: TensorRT-LLM's class.
        since: the first TensorRT-LLM release whose engines know it.
        reduce_fusion: an engine may fuse its all-reduce with the norm behind it.
        stage_scatter: an engine may scatter its sums before it hands them to the next stage.
        refused: algorithms whose engine does not compute this family, and why.
    """

    title: str
    architectures: tuple[str, ...]
    embedding: str
    final_norm: Norm | None
    head: str | None
    layer: str
    norms: tuple[Norm, ...]
    linears: tuple[Linear, ...]
    groups: tuple[Group, ...]
    ignored: tuple[str, ...]
    read: Callable[[Reader], dict[str, Any]]
    config: Callable[[Any], dict[str, Any]]
    stated: Callable[[Reader], dict[str, Any]] = lambda said: {}
    spellings: tuple[str, ...] = ()
    when: Callable[[Reader], bool] = lambda said: True
    views: Mapping[str, View] = field(default_factory=dict)
    arrangement: str = SEQUENTIAL
    task: Task | None = None
    classifies: bool = False
    engine_layer: str = "transformer.layers.{i}."
    engine_embedding: str = "transformer."
    positions: str = ROTARY
    position_embedding: str | None = None
    first_position: int = 0
    positions_behind_padding: bool = False
    type_embedding: str | None = None
    embedding_norm: Norm | None = None
    biased: bool = False
    norm_offset: float = 0.0
    activated: str | None = None
    mixture: Mixture | None = None
    experts: tuple[Mlp, ...] = ()
    shared: Mlp | None = None
    head_bias: str | None = None
    normalized_head: bool = False
    one_all_reduce: bool = False
    pipelined: bool = True
    four_times: bool = False
    four_times_unsaid: bool = False
    shares_embedding: bool = False
    cuts_embedding: bool = False
    fixed_epsilon: bool = False
    rope: Rope = field(default_factory=Rope)
    partly_turned: bool = False
    rope_types: tuple[str, ...] = ("linear", "dynamic", "llama3", "yarn")
    query_key_norms: tuple[Norm, Norm] | None = None
    keys: Mapping[str, str] = field(default_factory=lambda: {"norm_epsilon": "rms_norm_eps", "head_size": "head_dim"})
    implied: tuple[str, ...] = ()
    defaults: Mapping[str, int] = field(default_factory=dict)
    activations: Mapping[str, str] = field(default_factory=lambda: {"silu": "silu", "swish": "silu"})
    norm_epsilon: float = 1e-6
    tied: bool = False
    written: str | None = None
    since: str = "0.16.0"
    reduce_fusion: bool = False
    stage_scatter: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)

    def key(self, name: str) -> str:
        """config.json's name of a size."""
        return self.keys.get(name, name)

    def linear(self, name: str) -> Linear:
        return self._linears[name]

    @cached_property
    def _linears(self) -> Mapping[str, Linear]:
        return {linear.name: linear for linear in self.linears}

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
        return self._groups[linear]

    @cached_property
    def _groups(self) -> Mapping[str, Group]:
        return {linear: group for group in self.groups for linear in group.linears}

    @cached_property
    def of_experts(self) -> frozenset[str]:
        """Names of the experts' linears, each of which is a group of its own."""
        return frozenset(linear.name for linear in self.linears if linear.expert is not None)

    @property
    def rotary(self) -> bool:
        """Whether queries and keys are turned."""
        return self.positions in (ROTARY, INTERLEAVED)

    @property
    def alibi(self) -> bool:
        """Whether scores fall with the distance."""
        return self.positions in (ALIBI, SCALED_ALIBI)

    @property
    def mlp(self) -> Mlp:
        """The MLP of a family without experts."""
        first, last = self.linears[2:-1], self.linears[-1]
        parts = [part for linear in first for part in linear.parts]
        return Mlp(first, last, parts.index(self.activated) if self.activated else 0)

    @property
    def gates(self) -> tuple[Gate, ...]:
        """Linears that are never quantized."""
        return () if self.mixture is None else self.mixture.gates

    @property
    def rotates(self) -> bool:
        """Whether its norms, and what else reads the residual stream, commute with a rotation of it."""
        plain = all(norm.kind == RMS for norm in (*self.norms, self.last_norm)) and self.mixture is None
        plain = plain and self.arrangement == SEQUENTIAL
        return plain and self.positions != LEARNED and self.embedding_norm is None and not self.shares_embedding

    @property
    def predicts_tokens(self) -> bool:
        """Whether it is a language model, which has a perplexity."""
        return self.task is None and not self.classifies

    @property
    def last_norm(self) -> Norm:
        """The norm outside the layers that every family has: the final one, or an encoder's behind the embedding."""
        norm = self.final_norm or self.embedding_norm
        assert norm is not None
        return norm

    @property
    def outside(self) -> tuple[str, ...]:
        """Full names of the tables of tokens and, where there is one, of the output projection."""
        return (self.embedding,) if self.head is None else (self.head, self.embedding)

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


def renamed(family: Family, *parts: Sequence[str]) -> Family:
    """A family whose logical linears have other names, each a whole module; parts: of each of its linears."""
    names = dict[str | None, str]()
    for linear, own in zip(family.linears, parts, strict=True):
        names |= dict(zip(linear.parts, own, strict=True))
    linears = (replace(linear, parts=tuple(own)) for linear, own in zip(family.linears, parts, strict=True))
    groups = (replace(group, feeder=names.get(group.feeder)) for group in family.groups)
    return replace(family, linears=tuple(linears), groups=tuple(groups), views={})


def stacked(module: str, parts: Sequence[str], order: str = STACKED) -> dict[str, View]:
    """The views of logical linears that a module holds in this order."""
    return {part: View(module, piece, order=order) for piece, part in enumerate(parts)}


def unbiased(linears: Iterable[Linear]) -> tuple[Linear, ...]:
    """Linears that never have a bias."""
    return tuple(replace(linear, bias=None) for linear in linears)


def behind(groups: Iterable[Group], norms: Mapping[str, str]) -> tuple[Group, ...]:
    """Groups of linears that read other norms: new names by old ones."""
    return tuple(replace(group, norm=norms.get(group.norm or "", group.norm)) for group in groups)
