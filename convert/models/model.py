"""One model: its dimensions and constants, under TensorRT-LLM's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .family import Family
from .mixture import Gate
from .pieces import Norm
from .rope import TABLED_ROPE_TYPES, attention_factor
from .task import Task


@dataclass(frozen=True)
class Sizes:
    """The sizes of a decoder of any architecture, under TensorRT-LLM's names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    vocab_size: int


@dataclass(frozen=True)
class Model(Sizes):
    """Dimensions and constants of a decoder, under TensorRT-LLM's names.

    Attributes:
        dtype: the dtype the config states (torch_dtype or dtype), or None.
        hidden_act: TensorRT-LLM's name of the MLP's function; activation is Hugging Face's.
        rotary_scaling: the rope scaling dictionary with a ``rope_type``, or None for plain rope.
        rotary_dim: channels of a head that are turned.
        sliding_window: attention window in tokens, or None; every ``window_pattern``-th layer has none.
        local_base: the rotary base of layers with a window, where it is another.
        q_scaling: attention's scores are divided by it, beside sqrt(head_size).
        clip_qkv: queries, keys and values are clamped to it and its negative.
        attention_cap, logit_cap: scores and logits become cap * tanh(x / cap).
        multipliers: what tensors are multiplied by when they are read, by logical linear, or full name outside layers.
        num_experts: 0 without; top_k of them read a token, their weights divided by their sum if normalizes_experts.
        moe_intermediate_size, shared_expert_intermediate_size: widths of experts.
        embedding_scale, logit_scale: what the embedding and logits are multiplied by.
        alibi_bias_max: the exponent of ALiBi's last slope.
        type_vocab_size, pad_token_id, num_labels: token types, the padding token and what is predicted of an encoder.
        share: (parts, which): heads and MLP are one of so many parts of the model's; see ``ranks.rank_model``.
    """

    architecture: str
    family: Family
    dtype: str | None
    max_position_embeddings: int
    norm_epsilon: float
    hidden_act: str
    activation: str
    rotary_base: float
    rotary_scaling: dict[str, Any] | None
    rotary_dim: int
    tied: bool
    attn_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    window_pattern: int | None = None
    local_base: float | None = None
    q_scaling: float = 1.0
    clip_qkv: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    num_experts: int = 0
    top_k: int = 0
    normalizes_experts: bool = True
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    multipliers: Mapping[str, float] = field(default_factory=dict)
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    alibi_bias_max: float = 8.0
    type_vocab_size: int = 0
    pad_token_id: int = 0
    num_labels: int = 0
    share: tuple[int, int] = (1, 0)

    @property
    def engine_class(self) -> str:
        """TensorRT-LLM's class."""
        return self.family.written or self.architecture

    @property
    def task(self) -> Task:
        """What it is for, of an encoder."""
        assert self.family.task is not None
        return self.family.task

    @property
    def first_position(self) -> int:
        """The row of the table of positions that the first token has."""
        behind = self.pad_token_id + 1 if self.family.positions_behind_padding else 0
        return self.family.first_position + behind

    @property
    def longest(self) -> int:
        """The most tokens that a sequence has."""
        return self.max_position_embeddings + self.family.first_position - self.first_position

    @property
    def head_rows(self) -> int:
        """Rows of the output projection."""
        return self.num_labels if self.family.classifies else self.vocab_size

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_size

    @property
    def kv_size(self) -> int:
        return self.num_key_value_heads * self.head_size

    @property
    def brings_rotary_tables(self) -> bool:
        scaling = self.rotary_scaling
        return self.family.rotary and scaling is not None and scaling["rope_type"] in TABLED_ROPE_TYPES

    @property
    def attention_scaling(self) -> float:
        """What cos and sin of the rotary embedding are multiplied by; 1 but for YaRN."""
        scaling = self.rotary_scaling if self.family.rotary else None
        return attention_factor(scaling) if scaling is not None and scaling["rope_type"] == "yarn" else 1.0

    @property
    def shares_embedding(self) -> bool:
        """Whether its engine has no output projection but the embedding."""
        return self.family.shares_embedding and self.tied

    def window_of(self, layer: int) -> int | None:
        """The attention window of one layer in tokens, or None."""
        whole = self.window_pattern is not None and (layer + 1) % self.window_pattern == 0
        return None if whole else self.sliding_window

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Attention windows that go round the layers, where they have different ones; empty where all have the same."""
        return tuple(map(self.window_of, range(self.window_pattern))) if self.window_pattern else ()

    def dimension(self, name: str) -> int:
        return int(getattr(self, name))

    @property
    def mlp_channels(self) -> int:
        """Channels that the linears of MLPs that read one token, and their product, make of it."""
        if self.num_experts:
            return 3 * (self.top_k * self.moe_intermediate_size + self.shared_expert_intermediate_size)
        return (1 + sum(len(linear.parts) for linear in self.family.mlp.first)) * self.intermediate_size

    def norm_shape(self, norm: Norm) -> list[int]:
        """Of a norm's weight: [size], or [heads, size]."""
        heads = [] if norm.rows is None else [self.dimension(norm.rows)]
        return [*heads, self.dimension(norm.size)]

    def gate_shape(self, gate: Gate) -> list[int]:
        """[out, hidden_size]."""
        return [1 if gate.rows is None else self.dimension(gate.rows), self.hidden_size]

    def out_features(self, linear: str) -> list[int]:
        """Rows of each part of a fused linear."""
        return [self.dimension(name) for name in self.family.linear(linear).out_features]

    def has_bias(self, linear: str) -> bool:
        flag = self.family.linear(linear).bias
        return flag is not None and bool(getattr(self, flag))
