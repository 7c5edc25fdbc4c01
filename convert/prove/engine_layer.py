"""A layer that is executed: what the runtime asks of it, and how a TensorRT-LLM checkpoint's answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from ..models.mixture import Gate
from ..models.model import Model
from ..models.pieces import COLUMNS, Group, Norm
from ..peers import ALONE, Peers
from ..quantize.scheme import LayerSchemes
from ..targets.trtllm.formats import format_of
from ..targets.trtllm.formats.base import Activation, Engine, Format, Product, Rounding
from ..targets.trtllm.layout import CACHE_SCALE

Tensors = dict[str, torch.Tensor]
# Sees every linear before it is executed: its name, its tensors by suffix, its format and what it reads.
Watch = Callable[[str, Tensors, Format, Activation], None]


class ExecutedLayer(Protocol):
    """A layer's linears, norms and gates, by the family's names, on the runtime's device."""

    def norm(self, norm: Norm) -> Tensors:
        """A norm's tensors, by suffix."""

    def gate(self, gate: Gate) -> torch.Tensor:
        """The weight of a linear that is never quantized."""

    def rounding(self, group: Group) -> Rounding:
        """How the input of a group of linears is rounded."""

    def divisor(self, linear: str) -> torch.Tensor | None:
        """What an operation before a linear divides its input by, [in]; None where there is no such operation."""

    def product(self, linear: str, read: Activation) -> torch.Tensor:
        """What a linear makes, its bias added, [tokens, out]."""

    def prepared(self) -> ExecutedLayer:
        """The same for many calls of few tokens, as the kernels for many compute them."""

    def cache(self) -> tuple[str, torch.Tensor] | None:
        """How keys and values are kept (see ``gpt_attention``); None for a cache in the runtime's dtype."""


@dataclass(frozen=True)
class PreparedLayer:
    """A layer for many passes: nothing is computed or searched for that could be before.

    Attributes:
        products: of linears, with their biases.
        roundings: of what groups of linears read, by group.
        divisors: of what linears read, by linear.
        norms, gates: by name; norms by suffix then.
        kept: as ``cache``.
    """

    products: Mapping[str, Product]
    roundings: Mapping[str, Rounding]
    divisors: Mapping[str, torch.Tensor | None]
    norms: Mapping[str, Tensors]
    gates: Mapping[str, torch.Tensor]
    kept: tuple[str, torch.Tensor] | None

    @staticmethod
    def of(layer: ExecutedLayer, model: Model, products: Mapping[str, Product]) -> PreparedLayer:
        """A layer whose linears compute these."""
        family = model.family
        return PreparedLayer(
            products,
            {group.name: layer.rounding(group) for group in family.groups},
            {linear.name: layer.divisor(linear.name) for linear in family.linears},
            {norm.name: {name: one.float() for name, one in layer.norm(norm).items()} for norm in family.all_norms},
            {gate.name: layer.gate(gate) for gate in family.gates},
            layer.cache(),
        )

    def norm(self, norm: Norm) -> Tensors:
        return self.norms[norm.name]

    def gate(self, gate: Gate) -> torch.Tensor:
        return self.gates[gate.name]

    def rounding(self, group: Group) -> Rounding:
        return self.roundings[group.name]

    def divisor(self, linear: str) -> torch.Tensor | None:
        return self.divisors[linear]

    def product(self, linear: str, read: Activation) -> torch.Tensor:
        return self.products[linear](read)

    def prepared(self) -> PreparedLayer:
        return self

    def cache(self) -> tuple[str, torch.Tensor] | None:
        return self.kept


@dataclass(frozen=True)
class EngineLayer:
    """A layer of a checkpoint, executed by plugins.

    Attributes:
        tensors: by name inside the layer, as ``Checkpoint.layer`` gives them; integers are logical [out, in].
        kv_cache: "INT8", "FP8", or None.
        peers: who executes the other ranks, where this is what one rank has of the layer.
    """

    model: Model
    engine: Engine
    tensors: Tensors
    schemes: LayerSchemes
    kv_cache: str | None = None
    watch: Watch | None = None
    peers: Peers = ALONE

    def norm(self, norm: Norm) -> Tensors:
        return {suffix: self.tensors[f"{norm.name}.{suffix}"] for suffix in norm.suffixes}

    def gate(self, gate: Gate) -> torch.Tensor:
        return self.tensors[f"{gate.name}.weight"]

    def rounding(self, group: Group) -> Rounding:
        form = format_of(self.schemes[group.name], self.engine)
        scale = form.input_scale(group)
        return form.rounding(None if scale is None else self.tensors[scale])

    def divisor(self, linear: str) -> torch.Tensor | None:
        return self.form(linear).divisor(self.own(linear))

    def product(self, linear: str, read: Activation) -> torch.Tensor:
        own, form = self.own(linear), self.form(linear)
        if self.watch is not None:
            self.watch(linear, own, form, read)
        return self.behind(linear)(form.product(own, read))

    def behind(self, linear: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """What follows a product: its bias, and of a linear that is cut along its input the sum of all ranks' products.

        Ranks hold a bias that sums to the whole one where it is added before, and all the whole one where behind.
        """
        family, peers = self.model.family, self.peers if self.model.family.linear(linear).cut == COLUMNS else ALONE
        bias, before = None if self.form(linear).adds_bias else self.own(linear).get("bias"), family.one_all_reduce

        def whole(y: torch.Tensor) -> torch.Tensor:
            if bias is None:
                return peers.sum(y)
            return peers.sum(y + bias) if before else peers.sum(y) + bias

        return whole

    def prepared(self) -> PreparedLayer:
        linears = self.model.family.linears
        return PreparedLayer.of(self, self.model, {one.name: self.prepared_product(one.name) for one in linears})

    def prepared_product(self, linear: str) -> Product:
        """``product`` of one linear, for many calls."""
        run, whole = self.form(linear).prepared(self.own(linear)), self.behind(linear)
        return lambda read: whole(run(read))

    def cache(self) -> tuple[str, torch.Tensor] | None:
        return None if self.kv_cache is None else (self.kv_cache, self.tensors[CACHE_SCALE])

    def form(self, linear: str) -> Format:
        return format_of(self.schemes[self.model.family.group_of(linear).name], self.engine)

    def own(self, linear: str) -> Tensors:
        """A linear's tensors by suffix."""
        return {key[len(linear) + 1 :]: tensor for key, tensor in self.tensors.items() if key.startswith(f"{linear}.")}
