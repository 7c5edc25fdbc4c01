"""The checkpoint runtime: executes the written integers layer by layer, with each plugin's arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from ...plugins import gpt_attention, rmsnorm_quantization
from ..models.dimensions import Model
from ..models.family import Group
from ..models.forward import rotary_tables
from ..quantize.scheme import LayerSchemes, Scheme
from ..targets.trtllm.checkpoint import Checkpoint
from ..targets.trtllm.formats import format_of
from ..targets.trtllm.formats.base import Activation, Engine, Format
from ..targets.trtllm.layout import CACHE_SCALE

Tensors = dict[str, torch.Tensor]


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
        self.cos, self.sin = (table.to(device) for table in rotary_tables(frequencies, tokens))
        self.beyond: dict[str, None] = {}

    @staticmethod
    def of(checkpoint: Checkpoint, tokens: int, device: torch.device) -> Runtime:
        """The runtime that executes a checkpoint."""
        frequencies = checkpoint.rotary_frequencies()
        cache = checkpoint.precision.kv_cache
        return Runtime(checkpoint.model, checkpoint.engine, frequencies, tokens, device, cache)

    def layer(self, tensors: Tensors, schemes: LayerSchemes, hidden: torch.Tensor) -> torch.Tensor:
        """One decoder layer: hidden states [batch, tokens, hidden_size] before it and behind it."""
        batch, length, width = hidden.shape
        x = hidden.view(-1, width)
        attention, dense, mlp, proj = (schemes[group.name] for group in self.model.family.groups)
        qkv = self.linear(tensors, attention, "attention.qkv", self.norm(tensors, attention, "input_layernorm", x))
        attended = self.attention(tensors, qkv.view(batch, length, -1)).view(batch * length, -1)
        read = self.smoothed(tensors, dense, "attention.dense", attended)
        x = self.held("the hidden state behind attention", x + self.linear(tensors, dense, "attention.dense", read))
        y = self.norm(tensors, mlp, "post_layernorm", x)
        gated = functional.silu(self.linear(tensors, mlp, "mlp.fc", y).float()).to(self.dtype)
        product = self.held("the input of mlp.proj", gated * self.linear(tensors, mlp, "mlp.gate", y))
        x = x + self.linear(tensors, proj, "mlp.proj", self.smoothed(tensors, proj, "mlp.proj", product))
        return self.held("the hidden state behind the layer", x).view(batch, length, width)

    def held(self, what: str, x: torch.Tensor) -> torch.Tensor:
        """A value as the engine keeps it; one that its dtype cannot hold is remembered."""
        if not x.isfinite().all():
            self.beyond[what] = None
        return x

    def norm(self, tensors: Tensors, scheme: Scheme, name: str, x: torch.Tensor) -> Activation:
        """A layer norm, its output quantized where the linears behind it want it so."""
        weight, eps = tensors[f"{name}.weight"], self.model.norm_epsilon
        y = self.held(f"the output of {name}", rmsnorm_quantization.rms_norm(x, weight, eps))
        group = next(group for group in self.model.family.groups if group.norm == name)
        return self.quantized(tensors, scheme, group, y)

    def quantized(self, tensors: Tensors, scheme: Scheme, group: Group, x: torch.Tensor) -> Activation:
        """What the linears of a group read of x, their input in the engine's dtype."""
        form = format_of(scheme, self.engine)
        scale = form.input_scale(group)
        return form.quantized(x, None if scale is None else tensors[scale])

    def attention(self, tensors: Tensors, qkv: torch.Tensor) -> torch.Tensor:
        cache = None if self.kv_cache is None else (self.kv_cache, tensors[CACHE_SCALE])
        heads, kv_heads = self.model.num_attention_heads, self.model.num_key_value_heads
        attended = gpt_attention.reference(qkv, self.cos, self.sin, heads, kv_heads, cache)
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

    def logits(self, hidden: torch.Tensor, norm: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden_size] -> float32 [tokens, vocab_size], by the final norm and a float32 output projection."""
        y = self.held("the last norm's output", rmsnorm_quantization.rms_norm(hidden, norm, self.model.norm_epsilon))
        logits = y.float() @ head.t()
        self.held("a logit", logits.abs().amax().to(self.dtype))
        return logits
