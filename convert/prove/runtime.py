"""The runtime: executes a quantized model layer by layer, as the one that reads it does."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from ...plugins import gpt_attention
from ...plugins.mixture_of_experts import Routed, route
from ..models import block
from ..models.attention import heads_of
from ..models.ends import Head, engine_norm
from ..models.forward import ACTIVATIONS, Function, gelu, squared_relu
from ..models.mixture import Gate
from ..models.model import Model
from ..models.pieces import Linear, Mlp, Norm
from ..models.rotary import Turns
from ..numbers.finite import finite
from ..targets.trtllm.formats.base import Activation
from .engine_layer import ExecutedLayer

# By TensorRT-LLM's names, who approximates every GELU.
ENGINE_ACTIVATIONS: dict[str, Function] = {
    **dict.fromkeys(("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"), gelu),
    "silu": functional.silu,
    "swiglu": functional.silu,
    "geglu": gelu,
    "relu": functional.relu,
    "squared-relu": squared_relu,
}


class Attend(Protocol):
    """What attention computes in layer ``index`` of qkv, [batch, tokens, (heads + 2 * kv_heads) * head_size]."""

    def __call__(self, index: int, qkv: torch.Tensor, kv_cache: tuple[str, torch.Tensor] | None) -> torch.Tensor: ...


class Runtime:
    """Executes the layers of a quantized model, on whole sequences unless ``attend`` is exchanged.

    Hidden states are in the runtime's dtype between operations. Plugins see all tokens at once; of no more than four
    they compute what an engine does while it generates.

    Args:
        frequencies: inverse frequencies of the rotary embedding, float32 [head_size / 2].
        tokens: sequence length.
        turned: what cos and sin are multiplied by.
        engine: activation functions are TensorRT-LLM's; else as transformers has them.

    Attributes:
        attend: attention over the tokens that hidden states are of.
        checks: values are looked at, whether the dtype holds them.
        beyond: what did not fit the runtime's dtype since this was last emptied; infinite or no number from there on.
    """

    def __init__(
        self,
        model: Model,
        dtype: torch.dtype,
        frequencies: torch.Tensor,
        tokens: int,
        device: torch.device,
        turned: float = 1.0,
        engine: bool = True,
    ):
        self.model, self.dtype, self.device = model, dtype, device
        self.turns = Turns(model, frequencies, tokens, lambda table: table.to(device) * turned)
        self.activation = ENGINE_ACTIVATIONS[model.hidden_act] if engine else ACTIVATIONS[model.activation]
        self.attend: Attend = self.attend_whole
        self.checks = True
        self.beyond: dict[str, None] = {}

    def attend_whole(self, index: int, qkv: torch.Tensor, kv_cache: tuple[str, torch.Tensor] | None) -> torch.Tensor:
        """Attention over whole sequences."""
        return gpt_attention.reference(qkv, *self.turns.of(index), heads_of(self.model, index), kv_cache)

    def layer(self, index: int, layer: ExecutedLayer, hidden: torch.Tensor) -> torch.Tensor:
        """One decoder layer: hidden states [batch, tokens, hidden_size] before it and behind it."""
        return block.finished(block.steps(self.model.family, LayerFunctions(self, index, layer, hidden.shape), hidden))

    def held(self, what: str, x: torch.Tensor) -> torch.Tensor:
        """A value as the engine keeps it; one that its dtype cannot hold is remembered."""
        if self.checks and not finite(x):
            self.beyond[what] = None
        return x

    def logits(self, hidden: torch.Tensor, head: Head, out: torch.Tensor | None = None) -> torch.Tensor:
        """[tokens, hidden_size] -> float32 [tokens, vocab_size]; head: in float32.

        Args:
            out: where they are put, if not in memory of their own.
        """
        logits = head.logits(self.held("the last norm's output", head.normed(hidden)), out)
        self.held("a logit", torch.stack(torch.aminmax(logits)).to(self.dtype))
        return logits


class LayerFunctions:
    """A layer as functions of a block; inputs of linears may be quantized, outputs are [tokens, out]."""

    def __init__(self, runtime: Runtime, index: int, layer: ExecutedLayer, shape: torch.Size):
        self.runtime, self.index, self.layer, self.shape = runtime, index, layer, shape

    def norm(self, norm: Norm, x: torch.Tensor) -> Activation:
        group = next(group for group in self.runtime.model.family.groups if group.norm == norm.name)
        return self.layer.quantized(group, self.normed(norm, x.view(-1, x.shape[-1])))

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

    def product(self, mlp: Mlp, made: list[torch.Tensor]) -> torch.Tensor:
        model, parts = self.runtime.model, list[torch.Tensor]()
        for linear, y in zip(mlp.first, made, strict=True):
            parts += y.split(model.out_features(linear.name), -1)
        activated, *other = mlp.activated_first(parts)
        y = self.runtime.activation(activated.float()).to(self.runtime.dtype)
        return self.runtime.held(f"the input of {mlp.last.name}", y * other[0] if other else y)

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
        return self.layer.quantized(self.runtime.model.family.group_of(linear.name), x)

    def add(self, linear: Linear, x: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        where = "the layer" if linear == self.runtime.model.family.linears[-1] else "attention"
        return self.runtime.held(f"the hidden state behind {where}", x + made.view(x.shape))
