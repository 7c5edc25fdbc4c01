"""A quantized layer as functions of a block: what TensorRT-LLM's plugins compute, operation by operation."""

from __future__ import annotations

import torch

from ...plugins.mixture_of_experts import Routed, route
from ..models.ends import engine_norm
from ..models.mixture import Gate
from ..models.pieces import Group, Linear, Mlp, Norm
from ..targets.trtllm.formats.base import Activation
from .engine_layer import ExecutedLayer
from .runtime import Runtime


class LayerFunctions:
    """A layer as functions of a block; inputs of linears may be quantized, outputs are [tokens, out]."""

    def __init__(self, runtime: Runtime, index: int, layer: ExecutedLayer, shape: torch.Size):
        self.runtime, self.index, self.layer, self.shape = runtime, index, layer, shape

    def norm(self, norm: Norm, x: torch.Tensor) -> Activation:
        return self.layer.rounding(self.behind_norm(norm)).of(self.normed(norm, x.view(-1, x.shape[-1])))

    def group(self, linear: Linear) -> Group:
        """The linears that read what one of them reads."""
        return self.runtime.model.family.group_of(linear.name)

    def behind_norm(self, norm: Norm) -> Group:
        """The linears that read a norm's output."""
        return next(group for group in self.runtime.model.family.groups if group.norm == norm.name)

    def linear(self, linear: Linear, read: Activation) -> torch.Tensor:
        return self.runtime.held(f"the output of {linear.name}", self.layer.product(linear.name, read))

    def attend(self, qkv: torch.Tensor) -> torch.Tensor:
        runtime, clip = self.runtime, self.runtime.model.clip_qkv
        qkv = qkv if clip is None else qkv.clamp(-clip, clip)
        qkv = self.head_normed(qkv).view(*self.shape[:2], -1)
        return runtime.held("the output of attention", runtime.attend(self.index, qkv, self.layer.cache()))

    def head_normed(self, qkv: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values [tokens, out], the first two behind their norms where the family has such."""
        model = self.runtime.model
        if model.family.query_key_norms is None:
            return qkv
        parts = list(qkv.split([model.query_size, model.kv_size, model.kv_size], -1))
        for place, norm in enumerate(model.family.query_key_norms):
            heads = self.normed(norm, parts[place].reshape(-1, model.head_size))
            parts[place] = heads.view(parts[place].shape)
        return torch.cat(parts, -1)

    def product(self, mlp: Mlp, made: list[torch.Tensor]) -> Activation:
        activated, *other = self.factors(mlp, made)
        y = self.runtime.activation(activated.float()).to(self.runtime.dtype)
        return self.read(mlp.last, self.runtime.held(f"the input of {mlp.last.name}", y * other[0] if other else y))

    def factors(self, mlp: Mlp, made: list[torch.Tensor]) -> list[torch.Tensor]:
        """What goes through an MLP's function, and what that is multiplied with where there is such."""
        parts = list[torch.Tensor]()
        for linear, y in zip(mlp.first, made, strict=True):
            parts += y.split(self.runtime.model.out_features(linear.name), -1)
        return mlp.activated_first(parts)

    def normed(self, norm: Norm, x: torch.Tensor) -> torch.Tensor:
        """A norm over the last axis of x, [tokens, size], or [tokens * heads, size] where heads have a weight each."""
        own = self.layer.norm(norm)
        if norm.rows is not None:
            own = {suffix: tensor.repeat(len(x) // len(tensor), 1) for suffix, tensor in own.items()}
        made = engine_norm(norm, x, own, self.runtime.model.norm_epsilon)
        return self.runtime.held(f"the output of {norm.name}", made)

    def routed(self, norm: Norm, x: torch.Tensor) -> Routed:
        model, read = self.runtime.model, self.normed(norm, x.view(-1, x.shape[-1]))
        scores = self.gated(model.family.gates[0], read)
        return Routed(read, route(scores, model.top_k, model.normalizes_experts))

    def gated(self, gate: Gate, x: torch.Tensor) -> torch.Tensor:
        """What a linear that is never quantized makes of x, in the dtype of its weight."""
        weight = self.layer.gate(gate)
        return x.to(weight.dtype) @ weight.t()

    def add_expert(self, routed: Routed, expert: int, made: torch.Tensor) -> None:
        routed.add(expert, made)

    def add_shared(self, routed: Routed, made: torch.Tensor) -> None:
        routed.total += made * torch.sigmoid(self.gated(self.runtime.model.family.gates[1], routed.x))

    def gathered(self, routed: Routed, x: torch.Tensor) -> torch.Tensor:
        return self.runtime.held("what experts make", routed.total)

    def behind(self, norm: Norm, x: torch.Tensor) -> torch.Tensor:
        return self.normed(norm, x.view(-1, x.shape[-1])).view(x.shape)

    def read(self, linear: Linear, x: torch.Tensor) -> Activation:
        """What a linear reads of an input that no norm makes: divided first, where the format does."""
        divisor, x = self.layer.divisor(linear.name), x.view(-1, x.shape[-1])
        if divisor is not None:
            x = self.runtime.held(f"the smoothed input of {linear.name}", x / divisor.to(self.runtime.dtype))
        return self.layer.rounding(self.group(linear)).of(x)

    def add(self, linear: Linear, x: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        where = "the layer" if linear == self.runtime.model.family.linears[-1] else "attention"
        return self.runtime.held(f"the hidden state behind {where}", x + made.view(x.shape))
