"""The checkpoint runtime: executes the written integers layer by layer, with each plugin's arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from ...plugins import (
    fp8,
    fp8_quantize_dequantize,
    fp8_rowwise_gemm,
    gpt_attention,
    qserve_gemm,
    quantize_dequantize,
    quantize_per_token,
    quantize_tensor,
    rmsnorm_quantization,
    smooth_quant_gemm,
    weight_only_groupwise_quant_matmul,
    weight_only_quant_matmul,
)
from ..models import block
from ..models.dimensions import Model
from ..models.ends import engine_norm
from ..models.family import Linear, Norm
from ..models.forward import ACTIVATIONS
from ..models.rotary import rotary_tables
from ..quantize.scheme import (
    AWQ,
    FP8,
    FP8_ROWWISE,
    GPTQ,
    QSERVE_CHANNEL,
    QSERVE_GROUP,
    SMOOTHQUANT_PLUGIN,
    SMOOTHQUANT_QDQ,
    WEIGHT_ONLY,
    LayerSchemes,
    Scheme,
)
from ..targets.trtllm.checkpoint import Checkpoint

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Activation:
    """What a linear reads.

    Attributes:
        x: [tokens, in]: the engine's dtype, or int8 or e4m3 where the input is quantized before the linear.
        scale: float32 [tokens, 1] of one quantized per token.
        total: float16 [tokens, 1], the sum of each row before it was quantized, where QServe wants it.
    """

    x: torch.Tensor
    scale: torch.Tensor | None = None
    total: torch.Tensor | None = None


class Runtime:
    """Executes the layers of a quantized model on whole sequences.

    Hidden states are in the engine's dtype between operations, as in an engine. Plugins see all tokens at once; of no
    more than four they compute what an engine does while it generates. Tensors are a layer's by name inside the layer,
    as ``Checkpoint.layer`` gives them, on the runtime's device.

    Args:
        dtype: the engine's, "float16" or "bfloat16".
        frequencies: inverse frequencies of the rotary embedding, float32 [head_size / 2].
        tokens: sequence length.

    Attributes:
        beyond: what did not fit the engine's dtype since this was last emptied; infinite or no number from there on.
        watch: sees every linear before it is executed: its tensors by suffix, its scheme and what it reads.
    """

    watch: Callable[[Tensors, Scheme, Activation], None] | None = None

    def __init__(self, model: Model, dtype: str, frequencies: torch.Tensor, tokens: int, device: torch.device):
        self.model, self.device = model, device
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.cos, self.sin = (table.to(device) for table in rotary_tables(frequencies, tokens))
        self.beyond: dict[str, None] = {}

    @staticmethod
    def of(checkpoint: Checkpoint, tokens: int, device: torch.device) -> Runtime:
        """The runtime that executes a checkpoint."""
        frequencies = checkpoint.rotary_frequencies()
        return Runtime(checkpoint.model, checkpoint.dtype, frequencies, tokens, device)

    def layer(self, tensors: Tensors, schemes: LayerSchemes, hidden: torch.Tensor) -> torch.Tensor:
        """One decoder layer: hidden states [batch, tokens, hidden_size] before it and behind it."""
        return block.run(self.model.family, LayerFunctions(self, tensors, schemes, hidden.shape), hidden)

    def held(self, what: str, x: torch.Tensor) -> torch.Tensor:
        """A value as the engine keeps it; one that its dtype cannot hold is remembered."""
        if not x.isfinite().all():
            self.beyond[what] = None
        return x

    def norm(self, tensors: Tensors, scheme: Scheme, norm: Norm, x: torch.Tensor) -> Activation:
        """A layer norm, its output quantized where the linears behind it want it so."""
        own = {suffix: tensors[f"{norm.name}.{suffix}"] for suffix in norm.suffixes}
        y = self.held(f"the output of {norm.name}", engine_norm(norm, x, own, self.model.norm_epsilon))
        if scheme.form == SMOOTHQUANT_PLUGIN:
            scale = tensors[f"{norm.name}.scale_to_int"]
            return Activation(*rmsnorm_quantization.quantize(y, scale, scheme.per_token))
        return self.quantized(scheme, y)

    def quantized(self, scheme: Scheme, y: torch.Tensor) -> Activation:
        """Quantize per token, where the scheme's activations are and no smoother comes first."""
        if scheme.form == FP8_ROWWISE:
            return Activation(*fp8.quantize_per_token(y))
        if scheme.form in (QSERVE_GROUP, QSERVE_CHANNEL):
            integers, scale = quantize_per_token.reference(y)
            return Activation(integers, scale.half(), y.float().sum(-1, keepdim=True).half())
        return Activation(y)

    def attention(self, tensors: Tensors, qkv: torch.Tensor, kv_cache: str | None) -> torch.Tensor:
        cache = None
        if kv_cache:
            cache = (kv_cache, tensors["attention.kv_cache_scaling_factor"])
        heads, kv_heads = self.model.num_attention_heads, self.model.num_key_value_heads
        attended = gpt_attention.reference(qkv, self.cos, self.sin, heads, kv_heads, cache)
        return self.held("the output of attention", attended)

    def smoothed(self, tensors: Tensors, scheme: Scheme, linear: str, x: torch.Tensor) -> Activation:
        """Divide by the runtime smoother and quantize, where the scheme does."""
        if scheme.form != SMOOTHQUANT_PLUGIN:
            return self.quantized(scheme, x)
        x = self.held(f"the smoothed input of {linear}", x / tensors[f"{linear}.smoother"].to(self.dtype))
        if scheme.per_token:
            return Activation(*quantize_per_token.reference(x))
        module = linear.split(".")[0]
        return Activation(quantize_tensor.reference(x, tensors[f"{module}.quantization_scaling_factor"]))

    def linear(self, tensors: Tensors, scheme: Scheme, name: str, read: Activation) -> torch.Tensor:
        """One linear; tensors hold logical integers [out, in], unpacked."""
        own = {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
        if self.watch is not None:
            self.watch(own, scheme, read)
        y = self.product(own, scheme, read)
        return self.held(f"the output of {name}", y if "bias" not in own or scheme.grouped else y + own["bias"])

    def product(self, own: Tensors, scheme: Scheme, read: Activation) -> torch.Tensor:
        """The plugin that executes a linear, by the scheme's form; ``own`` are the linear's tensors by suffix.

        A bias is added to what it returns, but for group-wise plugins, which add it themselves.
        """
        form, x, weight = scheme.form, read.x, own["weight"]
        if form == SMOOTHQUANT_PLUGIN:
            scale = own["act_scale"] if read.scale is None else read.scale
            return smooth_quant_gemm.reference(x, weight, scale, own["per_channel_scale"], self.dtype)
        if form == SMOOTHQUANT_QDQ:
            names = ("prequant_scaling_factor", "activation_scaling_factor", "weights_scaling_factor")
            return quantize_dequantize.reference(x, weight, *(own[suffix] for suffix in names))
        if form == WEIGHT_ONLY:
            return weight_only_quant_matmul.reference(x, weight, own["per_channel_scale"], scheme.bits, scheme.sm)
        if form == GPTQ:
            return weight_only_groupwise_quant_matmul.reference(
                x,
                weight,
                own["weights_scaling_factor"],
                zero=own["zero"],
                bias=own.get("bias"),
                bits=scheme.bits,
                sm=scheme.sm,
            )
        if form == AWQ:
            return self.awq(own, scheme, x)
        if form == FP8:
            scales = own["activation_scaling_factor"], own["weights_scaling_factor"]
            return fp8_quantize_dequantize.reference(x, weight, *scales)
        if form == FP8_ROWWISE:
            assert read.scale is not None
            return fp8_rowwise_gemm.reference(x, weight, read.scale, own["per_channel_scale"], self.dtype)
        if form == QSERVE_GROUP:
            assert read.scale is not None
            names = ("s1_scales", "s2_scales", "s2_zeros")
            return qserve_gemm.reference_per_group(x, read.scale, weight, *(own[suffix] for suffix in names))
        if form == QSERVE_CHANNEL:
            assert read.scale is not None
            assert read.total is not None
            scales = own["s1_scales"], own["s1_szeros"]
            return qserve_gemm.reference_per_channel(x, read.scale, read.total, weight, *scales)
        return functional.linear(x.float(), weight.float()).to(self.dtype)

    def awq(self, own: Tensors, scheme: Scheme, x: torch.Tensor) -> torch.Tensor:
        """AWQ's tensors as the loader hands them on: W4A8's two factors go into scale, prequant and alpha."""
        scale, prequant, alpha = own["weights_scaling_factor"], own["prequant_scaling_factor"][0], None
        if scheme.fp8_activations:
            activation, second = own["activation_scaling_factor"], own["weights_scaling_factor_2"]
            scale = weight_only_groupwise_quant_matmul.fp8_scale(scale, second)
            prequant = (prequant.float() / activation).to(self.dtype)
            alpha = activation * second
        return weight_only_groupwise_quant_matmul.reference(
            x, own["weight"], scale, prequant, alpha=alpha, bias=own.get("bias"), bits=scheme.bits, sm=scheme.sm
        )

    def logits(self, hidden: torch.Tensor, norm: Tensors, head: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden_size] -> float32 [tokens, vocab_size], by the final norm and a float32 output projection.

        Args:
            norm: the final norm's tensors, "weight" and "bias" where it has one.
        """
        final = engine_norm(self.model.family.final_norm, hidden, norm, self.model.norm_epsilon)
        y = self.held("the last norm's output", final)
        logits = y.float() @ head.t()
        self.held("a logit", logits.abs().amax().to(self.dtype))
        return logits


class LayerFunctions:
    """A checkpoint's layer as functions of a block; inputs of linears may be quantized, outputs are [tokens, out]."""

    def __init__(self, runtime: Runtime, tensors: Tensors, schemes: LayerSchemes, shape: torch.Size):
        self.runtime, self.tensors, self.shape = runtime, tensors, shape
        family = runtime.model.family
        self.by_norm = {group.norm: schemes[group.name] for group in family.groups if group.norm}
        self.by_linear = {linear: schemes[group.name] for group in family.groups for linear in group.linears}

    def norm(self, norm: Norm, x: torch.Tensor) -> Activation:
        return self.runtime.norm(self.tensors, self.by_norm[norm.name], norm, x.view(-1, x.shape[-1]))

    def linear(self, linear: Linear, read: Activation) -> torch.Tensor:
        return self.runtime.linear(self.tensors, self.by_linear[linear.name], linear.name, read)

    def attend(self, qkv: torch.Tensor) -> torch.Tensor:
        kv_cache = next(iter(self.by_linear.values())).kv_cache
        return self.runtime.attention(self.tensors, self.head_normed(qkv).view(*self.shape[:2], -1), kv_cache)

    def head_normed(self, qkv: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values [tokens, out], the first two behind their norms where the family has such."""
        model = self.runtime.model
        if model.family.query_key_norms is None:
            return qkv
        parts = list(qkv.split([model.query_size, model.kv_size, model.kv_size], -1))
        for place, norm in enumerate(model.family.query_key_norms):
            own = {"weight": self.tensors[f"{norm.name}.weight"]}
            heads = engine_norm(norm, parts[place].reshape(-1, model.head_size), own, model.norm_epsilon)
            parts[place] = self.runtime.held(f"the output of {norm.name}", heads).view(parts[place].shape)
        return torch.cat(parts, -1)

    def product(self, made: list[torch.Tensor]) -> torch.Tensor:
        first, *others = made
        y = ACTIVATIONS[self.runtime.model.hidden_act](first.float()).to(self.runtime.dtype)
        last = self.runtime.model.family.linears[-1].name
        return self.runtime.held(f"the input of {last}", y * others[0] if others else y)

    def read(self, linear: Linear, x: torch.Tensor) -> Activation:
        return self.runtime.smoothed(self.tensors, self.by_linear[linear.name], linear.name, x.view(-1, x.shape[-1]))

    def add(self, linear: Linear, x: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        where = "the layer" if linear == self.runtime.model.family.linears[-1] else "attention"
        return self.runtime.held(f"the hidden state behind {where}", x + made.view(x.shape))
