"""The float model: what a family computes, layer by layer, as transformers computes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from ...plugins import gpt_attention
from ...plugins.mixture_of_experts import Routed, route
from . import block
from .attention import heads_of
from .mixture import Gate
from .model import Model
from .pieces import LAYER, Linear, Mlp, Norm
from .rotary import Turns, rotary_frequencies

Tensors = dict[str, torch.Tensor]
See = Callable[[torch.Tensor], None]
# What can be watched: what a logical linear makes, what a norm reads.
MAKES, NORMS = "makes", "norms"


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x Phi(x) by its tanh approximation."""
    return functional.gelu(x, approximate="tanh")


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0)^2."""
    return functional.relu(x).square()


Function = Callable[[torch.Tensor], torch.Tensor]
# By Hugging Face's names.
ACTIVATIONS: dict[str, Function] = {
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), gelu),
    "silu": functional.silu,
    "swish": functional.silu,
    "relu": functional.relu,
    "relu2": squared_relu,
    "gelu": functional.gelu,
}


class LayerForward:
    """Runs decoder layers one after the other.

    Args:
        model: the dimensions.
        tokens: sequence length.
        dtype, device: where and in what the layers compute.
        scaled: yarn's attention factor is in the tables, as transformers has it; else it is in the weights of queries,
            as an engine has it.
        everyone: every expert reads every token, though it counts only where it is sent.

    Attributes:
        watchers: who sees what, by (MAKES, logical linear) or (NORMS, norm).
    """

    def __init__(
        self,
        model: Model,
        tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        scaled: bool = True,
        everyone: bool = False,
    ):
        self.model, self.family, self.tokens, self.dtype, self.device = model, model.family, tokens, dtype, device
        self.watchers: dict[tuple[str, str], list[See]] = defaultdict(list)
        self.tensors: Tensors = {}
        self.everyone = everyone
        frequencies, scaling = rotary_frequencies(model)
        self.attention_scaling = scaling if scaled else 1.0
        self.turns = Turns(
            model, frequencies, tokens, lambda table: (table.to(device) * self.attention_scaling).to(dtype)
        )

    def load(self, index: int, tensors: Tensors) -> None:
        """Become the layer of this number: take its weights, by logical linear and norm, as a source gives them."""
        self.tensors = {}
        self.heads = heads_of(self.model, index)
        self.cos, self.sin = self.turns.of(index)
        self.replace(tensors)

    def replace(self, tensors: Tensors) -> None:
        """Take some of them anew."""
        self.tensors |= {name: tensor.to(self.device, self.dtype) for name, tensor in tensors.items()}

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, hidden_size] -> the same, one layer further."""
        return block.finished(self.steps(hidden))

    def steps(self, hidden: torch.Tensor) -> block.Steps[torch.Tensor]:
        """The same, group by group: what each reads is yielded before its linears compute."""
        return block.steps(self.family, self, hidden)

    def watch(self, kind: str, name: str, see: See) -> None:
        """Call ``see`` with what a norm reads, or a logical linear makes, on every pass."""
        self.watchers[kind, name].append(see)

    def show(self, kind: str, name: str, x: torch.Tensor) -> None:
        for see in self.watchers.get((kind, name), ()):
            see(x)

    def norm(self, norm: Norm, x: torch.Tensor) -> torch.Tensor:
        self.show(NORMS, norm.name, x)
        return normed(norm, x, self.tensors, self.model.norm_epsilon)

    def linear(self, linear: Linear, read: torch.Tensor) -> list[torch.Tensor]:
        made = []
        for part in linear.parts:
            made.append(self.made(part, read))
            self.show(MAKES, part, made[-1])
        return made

    def made(self, part: str, read: torch.Tensor) -> torch.Tensor:
        """What a logical linear makes of its input."""
        made = functional.linear(read, self.tensors[f"{part}.weight"], self.tensors.get(f"{part}.bias"))
        clip = self.model.clip_qkv
        return made if clip is None or part not in self.family.attention else made.clamp(-clip, clip)

    def attend(self, qkv: list[torch.Tensor]) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (-1, self.model.head_size)) for part in qkv)
        q, k, v = (x.transpose(1, 2) for x in (self.head_normed(q, 0), self.head_normed(k, 1), v))
        q, k = self.turned(q), self.turned(k)
        return gpt_attention.attend(q, k, v, self.heads).transpose(1, 2).flatten(2)

    def product(self, mlp: Mlp, made: list[list[torch.Tensor]]) -> torch.Tensor:
        activated, *other = mlp.activated_first([part for linear in made for part in linear])
        y = ACTIVATIONS[self.model.activation](activated)
        return y * other[0] if other else y

    def read(self, linear: Linear, x: torch.Tensor) -> torch.Tensor:
        return x

    def normed(self, norm: Norm, made: list[torch.Tensor]) -> list[torch.Tensor]:
        for x in made:
            self.show(NORMS, norm.name, x)
        return [normed(norm, x, self.tensors, self.model.norm_epsilon) for x in made]

    def routed(self, norm: Norm, x: torch.Tensor) -> Routed:
        read = self.norm(norm, x).flatten(0, 1)
        scores = self.gated(self.family.gates[0], read)
        return Routed(read, route(scores, self.model.top_k, self.model.normalizes_experts), self.everyone)

    def gated(self, gate: Gate, x: torch.Tensor) -> torch.Tensor:
        """What a linear that is never quantized makes of x, [tokens, hidden_size]."""
        return functional.linear(x, self.tensors[f"{gate.tensor}.weight"])

    def add_expert(self, routed: Routed, expert: int, made: list[torch.Tensor]) -> None:
        routed.add(expert, made[0])

    def add_shared(self, routed: Routed, made: list[torch.Tensor]) -> None:
        routed.total += made[0] * torch.sigmoid(self.gated(self.family.gates[1], routed.x))

    def gathered(self, routed: Routed, x: torch.Tensor) -> list[torch.Tensor]:
        return [routed.total.view_as(x)]

    def behind(self, norm: Norm, x: torch.Tensor) -> torch.Tensor:
        return self.norm(norm, x)

    def add(self, linear: Linear, x: torch.Tensor, made: list[torch.Tensor]) -> torch.Tensor:
        return x + made[0]

    def head_normed(self, x: torch.Tensor, which: int) -> torch.Tensor:
        """Queries (which = 0) or keys (1), [..., heads, head_size], behind their norm where the family has one."""
        norms = self.family.query_key_norms
        return x if norms is None else normed(norms[which], x, self.tensors, self.model.norm_epsilon)

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        """Queries or keys [..., tokens, head_size] behind the rotary embedding."""
        return gpt_attention.rotate(x, self.cos, self.sin, self.heads.interleaved) if self.family.rotary else x

    def before_rotation(self, query: torch.Tensor) -> torch.Tensor:
        """Queries [batch, tokens, query_size] behind their norm. Same shape."""
        return self.head_normed(query.unflatten(-1, (-1, self.model.head_size)), 0).flatten(-2)

    def rotate(self, key: torch.Tensor) -> torch.Tensor:
        """Keys [batch, tokens, kv_size] as a KV cache holds them: normed and rotated, but not scaled. Same shape."""
        heads = self.head_normed(key.unflatten(-1, (-1, self.model.head_size)), 1)
        if self.family.rotary:
            cos, sin = (table[: key.shape[1], None, :] / self.attention_scaling for table in (self.cos, self.sin))
            heads = gpt_attention.rotate(heads, cos, sin, self.heads.interleaved)
        return heads.flatten(-2)


def normed(norm: Norm, x: torch.Tensor, tensors: Mapping[str, torch.Tensor], epsilon: float) -> torch.Tensor:
    """A norm over the last axis, computed in float32 and kept in x's dtype."""
    weight = tensors[f"{norm.tensor}.weight"]
    if norm.kind == LAYER:
        bias = tensors.get(f"{norm.tensor}.bias")
        if norm.rows is None:
            return functional.layer_norm(x, weight.shape, weight, bias, epsilon)
        return weight * functional.layer_norm(x, weight.shape[1:], eps=epsilon)
    y = x.float()
    scaled: torch.Tensor = weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)
    return scaled
