"""The checkpoint runtime: executes the written integers layer by layer, with each plugin's arithmetic."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..plugins import (
    gpt_attention,
    quantize_dequantize,
    quantize_per_token,
    quantize_tensor,
    rmsnorm_quantization,
    smooth_quant_gemm,
)
from .forward import rotary_tables
from .joined import Checkpoint

Tensors = dict[str, torch.Tensor]
# An input quantized for a SmoothQuantGemm, or a plain activation for the other schemes.
Quantized = tuple[torch.Tensor, torch.Tensor | None]


class Runtime:
    """Executes a checkpoint on whole sequences.

    Hidden states are in the checkpoint's dtype between operations, as in an engine.

    Args:
        checkpoint: what to execute.
        tokens: sequence length.
    """

    def __init__(self, checkpoint: Checkpoint, tokens: int, device: torch.device):
        self.checkpoint, self.device = checkpoint, device
        self.model, self.scheme = checkpoint.model, checkpoint.scheme
        self.dtype: torch.dtype = getattr(torch, checkpoint.dtype)
        tables = rotary_tables(checkpoint.rotary_frequencies(), tokens)
        self.cos, self.sin = (table.to(device) for table in tables)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [batch, tokens] -> hidden states [batch, tokens, hidden_size]."""
        return functional.embedding(ids, self.checkpoint.embedding()).to(self.device)

    def layer(self, tensors: Tensors, hidden: torch.Tensor) -> torch.Tensor:
        """One decoder layer; tensors as ``Checkpoint.layer`` gives them, on this device."""
        batch, length, width = hidden.shape
        x = hidden.view(-1, width)
        qkv = self.linear(tensors, "attention.qkv", self.norm(tensors, "input_layernorm", x))
        attended = self.attention(tensors, qkv.view(batch, length, -1)).view(batch * length, -1)
        x = x + self.linear(tensors, "attention.dense", self.smoothed(tensors, "attention", "dense", attended))
        y = self.norm(tensors, "post_layernorm", x)
        gated = functional.silu(self.linear(tensors, "mlp.fc", y).float()).to(self.dtype)
        product = gated * self.linear(tensors, "mlp.gate", y)
        x = x + self.linear(tensors, "mlp.proj", self.smoothed(tensors, "mlp", "proj", product))
        return x.view(batch, length, width)

    def norm(self, tensors: Tensors, name: str, x: torch.Tensor) -> Quantized:
        weight, eps = tensors[f"{name}.weight"], self.model.norm_epsilon
        if not self.scheme.plugin:
            return rmsnorm_quantization.rms_norm(x, weight, eps), None
        scale = tensors[f"{name}.scale_to_int"]
        return rmsnorm_quantization.reference(x, weight, scale, eps, self.scheme.per_token)

    def attention(self, tensors: Tensors, qkv: torch.Tensor) -> torch.Tensor:
        cache = None
        if self.scheme.kv_cache:
            cache = (self.scheme.kv_cache, tensors["attention.kv_cache_scaling_factor"])
        heads, kv_heads = self.model.num_attention_heads, self.model.num_key_value_heads
        return gpt_attention.reference(qkv, self.cos, self.sin, heads, kv_heads, cache)

    def smoothed(self, tensors: Tensors, module: str, linear: str, x: torch.Tensor) -> Quantized:
        """Divide by the runtime smoother and quantize, where the scheme does."""
        if not self.scheme.plugin:
            return x, None
        x = x / tensors[f"{module}.{linear}.smoother"].to(self.dtype)
        if self.scheme.per_token:
            return quantize_per_token.reference(x)
        return quantize_tensor.reference(x, tensors[f"{module}.quantization_scaling_factor"]), None

    def linear(self, tensors: Tensors, name: str, x: Quantized) -> torch.Tensor:
        activation, token_scale = x
        weight = tensors[f"{name}.weight"]
        if self.scheme.plugin:
            scale = tensors[f"{name}.act_scale"] if token_scale is None else token_scale
            y = smooth_quant_gemm.reference(activation, weight, scale, tensors[f"{name}.per_channel_scale"], self.dtype)
        elif self.scheme.smoothquant:
            y = quantize_dequantize.reference(
                activation,
                weight,
                tensors[f"{name}.prequant_scaling_factor"],
                tensors[f"{name}.activation_scaling_factor"],
                tensors[f"{name}.weights_scaling_factor"],
            )
        else:
            y = functional.linear(activation.float(), weight.float()).to(self.dtype)
        bias = tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        weight = self.checkpoint.final_norm().to(self.device)
        return rmsnorm_quantization.rms_norm(hidden, weight, self.model.norm_epsilon)
