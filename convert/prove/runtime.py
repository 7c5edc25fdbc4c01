"""The runtime: what the layers of a quantized model are executed with."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from ...plugins import gpt_attention
from ..models.attention import heads_of
from ..models.ends import Head
from ..models.forward import ACTIVATIONS, Function, gelu, squared_relu
from ..models.model import Model
from ..models.rotary import Turns
from ..numbers.finite import all_finite
from ..peers import ALONE, Peers

# What plugins call an activation, by transformers' names and TensorRT-LLM's, who approximates every GELU.
NAMES = {
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "geglu"), "gelu"),
    **dict.fromkeys(("silu", "swish", "swiglu"), "silu"),
    **dict.fromkeys(("relu2", "squared-relu"), "squared-relu"),
    "relu": "relu",
}
ENGINE_NAMES = NAMES | {"gelu": "gelu"}
FUNCTIONS: dict[str, Function] = {
    "gelu": gelu,
    "silu": functional.silu,
    "relu": functional.relu,
    "squared-relu": squared_relu,
}


class Attend(Protocol):
    """What attention computes in layer ``index`` of qkv, [batch, tokens, (heads + 2 * kv_heads) * head_size]."""

    def __call__(self, index: int, qkv: torch.Tensor, kv_cache: tuple[str, torch.Tensor] | None) -> torch.Tensor: ...


class Runtime:
    """What ``computed`` executes layers of a quantized model with, on whole sequences unless ``attend`` is exchanged.

    Hidden states are in the runtime's dtype between operations. Plugins see all tokens at once; of no more than four
    they compute what an engine does while it generates.

    Args:
        frequencies: inverse frequencies of the rotary embedding, float32 [head_size / 2].
        tokens: sequence length.
        turned: what cos and sin are multiplied by.
        engine: activation functions are TensorRT-LLM's; else as transformers has them.
        peers: who executes the other parts of the layers, where the model is a part.

    Attributes:
        activation_name: the plugins' name of the activation function; None for one that they do not have.
        attend: attention over the tokens that hidden states are of.
        checks: values are looked at, whether the dtype holds them.
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
        peers: Peers = ALONE,
    ):
        self.model, self.dtype, self.device, self.peers = model, dtype, device, peers
        self.turns = Turns(model, frequencies, tokens, lambda table: table.to(device) * turned)
        self.activation_name = ENGINE_NAMES[model.hidden_act] if engine else NAMES.get(model.activation)
        self.activation = (
            ACTIVATIONS[model.activation] if self.activation_name is None else FUNCTIONS[self.activation_name]
        )
        self.attend: Attend = self.attend_whole
        self.checks = True
        self.seen: list[tuple[str, torch.Tensor]] = []

    def attend_whole(self, index: int, qkv: torch.Tensor, kv_cache: tuple[str, torch.Tensor] | None) -> torch.Tensor:
        """Attention over whole sequences."""
        return gpt_attention.reference(qkv, *self.turns.of(index), heads_of(self.model, index), kv_cache)

    def held(self, what: str, x: torch.Tensor) -> torch.Tensor:
        """A value as the engine keeps it; whether its dtype can hold it is seen by ``beyond``."""
        if self.checks and x.numel():
            self.seen.append((what, all_finite(x)))
        return x

    def beyond(self) -> str | None:
        """The first value since this was last asked that did not fit the runtime's dtype: infinite, or no number."""
        seen, self.seen = self.seen, []
        fits = self.peers.all(torch.stack([fit for _, fit in seen])).tolist() if seen else []
        return next((what for (what, _), fit in zip(seen, fits, strict=True) if not fit), None)

    def logits(self, hidden: torch.Tensor, head: Head, out: torch.Tensor | None = None) -> torch.Tensor:
        """[tokens, hidden_size] -> float32 [tokens, vocab_size]; head: in float32.

        Args:
            out: where they are put, if not in memory of their own.
        """
        logits = head.logits(self.held("the last norm's output", head.normed(hidden)), out)
        self.held("a logit", torch.stack(torch.aminmax(logits)).to(self.dtype))
        return logits
