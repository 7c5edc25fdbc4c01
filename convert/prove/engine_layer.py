"""A layer that is executed: what the runtime asks of it, and how a TensorRT-LLM checkpoint's answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
class EngineLayer:
    """A layer of a checkpoint, executed by plugins.

    Attributes:
        tensors: by name inside the layer, as ``Checkpoint.layer`` gives them; integers are logical [out, in].
        kv_cache: "INT8", "FP8", or None.
        products: what linears compute, where they were prepared; then their integers are not among the tensors.
        peers: who executes the other ranks, where this is what one rank has of the layer.
    """

    model: Model
    engine: Engine
    tensors: Tensors
    schemes: LayerSchemes
    kv_cache: str | None = None
    watch: Watch | None = None
    products: dict[str, Product] | None = None
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
        if self.products is not None:
            return self.products[linear](read)
        own, form = self.own(linear), self.form(linear)
        if self.watch is not None:
            self.watch(linear, own, form, read)
        return self.finished(linear, form.product(own, read), None if form.adds_bias else own.get("bias"))

    def finished(self, linear: str, y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """A product with its bias; of a linear that is cut along its input, the sum of all ranks' products.

        Where ranks hold a bias that sums to the whole one, it is added before; else all have the whole one.
        """
        family = self.model.family
        partial = self.peers.size > 1 and family.linear(linear).cut == COLUMNS
        if partial and not family.one_all_reduce:
            y, partial = self.peers.sum(y), False
        y = y if bias is None else y + bias
        return self.peers.sum(y) if partial else y

    def prepared(self) -> EngineLayer:
        names = [linear.name for linear in self.model.family.linears]
        held = {f"{name}.weight" for name in names}
        tensors = {name: tensor for name, tensor in self.tensors.items() if name not in held}
        for norm in self.model.family.all_norms:
            tensors |= {f"{norm.name}.{suffix}": tensors[f"{norm.name}.{suffix}"].float() for suffix in norm.suffixes}
        return replace(self, tensors=tensors, products={name: self.prepared_product(name) for name in names})

    def prepared_product(self, linear: str) -> Product:
        """``product`` of one linear, for many calls."""
        own, form = self.own(linear), self.form(linear)
        run, bias = form.prepared(own), None if form.adds_bias else own.get("bias")
        return lambda read: self.finished(linear, run(read), bias)

    def cache(self) -> tuple[str, torch.Tensor] | None:
        return None if self.kv_cache is None else (self.kv_cache, self.tensors[CACHE_SCALE])

    def form(self, linear: str) -> Format:
        return format_of(self.schemes[self.model.family.group_of(linear).name], self.engine)

    def own(self, linear: str) -> Tensors:
        """A linear's tensors by suffix."""
        return {key[len(linear) + 1 :]: tensor for key, tensor in self.tensors.items() if key.startswith(f"{linear}.")}
