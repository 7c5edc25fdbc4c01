"""The checkpoint runtime: executes the written integers layer by layer, with each plugin's arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from ...plugins import gpt_attention
from ...plugins.mixture_of_experts import Routed, route
from ..models import block
from ..models.attention import heads_of
from ..models.ends import Head, engine_norm
from ..models.forward import Function, gelu, squared_relu
from ..models.mixture import Gate
from ..models.model import Model
from ..models.pieces import Group, Linear, Mlp, Norm
from ..models.rotary import Turns
from ..numbers.finite import finite
from ..quantize.scheme import LayerSchemes, Scheme
from ..targets.trtllm.checkpoint import Checkpoint
from ..targets.trtllm.formats import format_of
from ..targets.trtllm.formats.base import Activation, Engine, Format
from ..targets.trtllm.layout import CACHE_SCALE

Tensors = dict[str, torch.Tensor]
# By TensorRT-LLM's names, who approximates every GELU.
ENGINE_ACTIVATIONS: dict[str, Function] = {
    **dict.fromkeys(("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"), gelu),
    "silu": functional.silu,
    "swiglu": functional.silu,
    "geglu": gelu,
    "relu": functional.relu,
    "squared-relu": squared_relu,
}


class Runtime:
    """Executes the layers of a quantized model on whole sequences.

    Hidden states are in the engine's dtype between operations, as in an engine. Plugins see all tokens at once; of no
    more than four they compute what an engine does while it generates. Tensors are a layer's by name inside the layer,
    as ``Checkpoint.layer`` gives them, on the runtime's device.

    Args:
        frequencies: inverse frequencies of the rotary embedding, float32 [head_size / 2].
        tokens: sequence length.
        kv_cache: "INT8", "FP8", or None for a cache in the engine's dtype.

    Attributes:
        beyond: what did not fit the engine's dtype since this was last emptied; infinite or no number from there on.
        watch: sees every linear before it is executed: its name, its tensors by suffix, its format and what it reads.
    """

    watch: Callable[[str, Tensors, Format, Activation], None] | None = None

    def __init__(
        self,
        model: Model,
        engine: Engine,
        frequencies: torch.Tensor,
        tokens: int,
        device: torch.device,
        kv_cache: str | None = None,
    ):
        self.model, self.engine, self.device, self.kv_cache = model, engine, device, kv_cache
        self.dtype = engine.torch_dtype
        self.turns = Turns(model, frequencies, tokens, lambda table: table.to(device))
        self.beyond: dict[str, None] = {}

    @staticmethod
    def of(checkpoint: Checkpoint, tokens: int, device: torch.device) -> Runtime:
        """The runtime that executes a checkpoint."""
        frequencies = checkpoint.rotary_frequencies()
        cache = checkpoint.precision.kv_cache
        return Runtime(checkpoint.model, checkpoint.engine, frequencies, tokens, device, cache)

    def layer(self, index: int, tensors: Tensors, schemes: LayerSchemes, hidden: torch.Tensor) -> torch.Tensor:
        """One decoder layer: hidden states [batch, tokens, hidden_size] before it and behind it."""
        functions = LayerFunctions(self, index, tensors, schemes, hidden.shape)
        return block.finished(block.steps(self.model.family, functions, hidden))

    def held(self, what: str, x: torch.Tensor) -> torch.Tensor:
        """A value as the engine keeps it; one that its dtype cannot hold is remembered."""
        if not finite(x):
            self.beyond[what] = None
        return x

    def norm(self, tensors: Tensors, scheme: Scheme, norm: Norm, x: torch.Tensor) -> Activation:
        """A layer norm, its output quantized where the linears behind it want it so."""
        group = next(group for group in self.model.family.groups if group.norm == norm.name)
        return self.quantized(tensors, scheme, group, self.normed(tensors, norm, x))

    def normed(self, tensors: Tensors, norm: Norm, x: torch.Tensor) -> torch.Tensor:
        """A norm over the last axis of x, [tokens, size], or [tokens * heads, size] where heads have a weight each."""
        own = {suffix: tensors[f"{norm.name}.{suffix}"] for suffix in norm.suffixes}
        if norm.rows is not None:
            own = {suffix: tensor.repeat(len(x) // len(tensor), 1) for suffix, tensor in own.items()}
        return self.held(f"the output of {norm.name}", engine_norm(norm, x, own, self.model.norm_epsilon))

    def quantized(self, tensors: Tensors, scheme: Scheme, group: Group, x: torch.Tensor) -> Activation:
        """What the linears of a group read of x, their input in the engine's dtype."""
        form = format_of(scheme, self.engine)
        scale = form.input_scale(group)
        return form.quantized(x, None if scale is None else tensors[scale])

    def attention(self, index: int, tensors: Tensors, qkv: torch.Tensor) -> torch.Tensor:
        cache = None if self.kv_cache is None else (self.kv_cache, tensors[CACHE_SCALE])
        attended = gpt_attention.reference(qkv, *self.turns.of(index), heads_of(self.model, index), cache)
        return self.held("the output of attention", attended)

    def smoothed(self, tensors: Tensors, scheme: Scheme, linear: str, x: torch.Tensor) -> Activation:
        """What a linear reads of an input that no norm makes: divided first, where the format does."""
        divisor = format_of(scheme, self.engine).divisor(self.own(tensors, linear))
        if divisor is not None:
            x = self.held(f"the smoothed input of {linear}", x / divisor.to(self.dtype))
        return self.quantized(tensors, scheme, self.model.family.group_of(linear), x)

    def own(self, tensors: Tensors, linear: str) -> Tensors:
        """A linear's tensors by suffix."""
        return {key[len(linear) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{linear}.")}

    def linear(self, tensors: Tensors, scheme: Scheme, name: str, read: Activation) -> torch.Tensor:
        """One linear; tensors hold logical integers [out, in], unpacked."""
        own, form = self.own(tensors, name), format_of(scheme, self.engine)
        if self.watch is not None:
            self.watch(name, own, form, read)
        y = form.product(own, read)
        return self.held(f"the output of {name}", y if "bias" not in own or form.adds_bias else y + own["bias"])

    def logits(self, hidden: torch.Tensor, head: Head, out: torch.Tensor | None = None) -> torch.Tensor:
        """[tokens, hidden_size] -> float32 [tokens, vocab_size]; head: in float32.

        Args:
            out: where they are put, if not in memory of their own.
        """
        logits = head.logits(self.held("the last norm's output", head.normed(hidden)), out)
        self.held("a logit", torch.stack(torch.aminmax(logits)).to(self.dtype))
        return logits


class LayerFunctions:
    """A checkpoint's layer as functions of a block; inputs of linears may be quantized, outputs are [tokens, out]."""

    def __init__(self, runtime: Runtime, index: int, tensors: Tensors, schemes: LayerSchemes, shape: torch.Size):
        self.runtime, self.index, self.tensors, self.shape = runtime, index, tensors, shape
        family = runtime.model.family
        self.by_norm = {group.norm: schemes[group.name] for group in family.groups if group.norm}
        self.by_linear = {linear: schemes[group.name] for group in family.groups for linear in group.linears}

    def norm(self, norm: Norm, x: torch.Tensor) -> Activation:
        return self.runtime.norm(self.tensors, self.by_norm[norm.name], norm, x.view(-1, x.shape[-1]))

    def linear(self, linear: Linear, read: Activation) -> torch.Tensor:
        return self.runtime.linear(self.tensors, self.by_linear[linear.name], linear.name, read)

    def attend(self, qkv: torch.Tensor) -> torch.Tensor:
        clip = self.runtime.model.clip_qkv
        qkv = qkv if clip is None else qkv.clamp(-clip, clip)
        return self.runtime.attention(self.index, self.tensors, self.head_normed(qkv).view(*self.shape[:2], -1))

    def head_normed(self, qkv: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values [tokens, out], the first two behind their norms where the family has such."""
        model = self.runtime.model
        if model.family.query_key_norms is None:
            return qkv
        parts = list(qkv.split([model.query_size, model.kv_size, model.kv_size], -1))
        for place, norm in enumerate(model.family.query_key_norms):
            heads = self.runtime.normed(self.tensors, norm, parts[place].reshape(-1, model.head_size))
            parts[place] = heads.view(parts[place].shape)
        return torch.cat(parts, -1)

    def product(self, mlp: Mlp, made: list[torch.Tensor]) -> torch.Tensor:
        model, parts = self.runtime.model, list[torch.Tensor]()
        for linear, y in zip(mlp.first, made, strict=True):
            parts += y.split(model.out_features(linear.name), -1)
        activated, *other = mlp.activated_first(parts)
        y = ENGINE_ACTIVATIONS[model.hidden_act](activated.float()).to(self.runtime.dtype)
        return self.runtime.held(f"the input of {mlp.last.name}", y * other[0] if other else y)

    def normed(self, norm: Norm, made: torch.Tensor) -> torch.Tensor:
        return self.runtime.normed(self.tensors, norm, made)

    def routed(self, norm: Norm, x: torch.Tensor) -> Routed:
        model, read = self.runtime.model, self.runtime.normed(self.tensors, norm, x.view(-1, x.shape[-1]))
        scores = self.gated(model.family.gates[0], read)
        return Routed(read, route(scores, model.top_k, model.normalizes_experts))

    def gated(self, gate: Gate, x: torch.Tensor) -> torch.Tensor:
        """What a linear that is never quantized makes of x, in the dtype of its weight."""
        weight = self.tensors[f"{gate.name}.weight"]
        return x.to(weight.dtype) @ weight.t()

    def add_expert(self, routed: Routed, expert: int, made: torch.Tensor) -> None:
        routed.add(expert, made)

    def add_shared(self, routed: Routed, made: torch.Tensor) -> None:
        routed.total += made * torch.sigmoid(self.gated(self.runtime.model.family.gates[1], routed.x))

    def gathered(self, routed: Routed, x: torch.Tensor) -> torch.Tensor:
        return self.runtime.held("what experts make", routed.total)

    def behind(self, norm: Norm, x: torch.Tensor) -> torch.Tensor:
        return self.runtime.normed(self.tensors, norm, x.view(-1, x.shape[-1])).view(x.shape)

    def read(self, linear: Linear, x: torch.Tensor) -> Activation:
        return self.runtime.smoothed(self.tensors, self.by_linear[linear.name], linear.name, x.view(-1, x.shape[-1]))

    def add(self, linear: Linear, x: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        where = "the layer" if linear == self.runtime.model.family.linears[-1] else "attention"
        return self.runtime.held(f"the hidden state behind {where}", x + made.view(x.shape))
