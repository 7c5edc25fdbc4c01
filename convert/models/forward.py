"""A decoder layer's own forward pass: transformers' module, built empty and filled layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch.utils.hooks import RemovableHandle
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from ...plugins import gpt_attention
from .dimensions import Model


def transformers_config(model: Model) -> transformers.LlamaConfig:
    """The model as transformers sees it, in the config style of the installed version.

    Mistral's layer is Llama's without biases; its attention window never acts on sequences that fit in it.
    """
    rope: dict[str, Any]
    if int(transformers.__version__.split(".")[0]) >= 5:
        scaling = model.rotary_scaling or {"rope_type": "default"}
        rope = {"rope_parameters": {"rope_theta": model.rotary_base, **scaling}}
    else:
        rope = {"rope_theta": model.rotary_base, "rope_scaling": model.rotary_scaling}
    config = transformers.LlamaConfig(
        hidden_size=model.query_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads,
        head_dim=model.head_size,
        vocab_size=model.vocab_size,
        max_position_embeddings=model.max_position_embeddings,
        rms_norm_eps=model.norm_epsilon,
        hidden_act=model.hidden_act,
        attention_bias=model.attn_bias,
        mlp_bias=model.mlp_bias,
        **rope,
    )
    config.hidden_size = model.hidden_size  # it refuses one that is no multiple of the heads; its layers do not
    config._attn_implementation = "sdpa"
    return config


def rotary_frequencies(model: Model) -> tuple[torch.Tensor, float]:
    """Inverse frequencies of the rotary embedding, float32 [head_size / 2], and what cos and sin are multiplied by."""
    rotary = LlamaRotaryEmbedding(config=transformers_config(model))
    return rotary.inv_freq.float(), float(rotary.attention_scaling)


def rotary_tables(frequencies: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of the rotary embedding, float32 [tokens, head_size] each."""
    angles = torch.outer(torch.arange(tokens, device=frequencies.device).float(), frequencies)
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


class LayerForward:
    """Runs decoder layers one after the other in one set of buffers.

    Args:
        model: the dimensions.
        tokens: sequence length.
        dtype, device: where and in what the layers compute.
    """

    def __init__(self, model: Model, tokens: int, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device = dtype, device
        with torch.device("meta"):
            self.module = LlamaDecoderLayer(transformers_config(model), layer_idx=0).eval().requires_grad_(False)
        frequencies, self.attention_scaling = rotary_frequencies(model)
        cos, sin = (table.to(device) for table in rotary_tables(frequencies, tokens))
        self.rotary = tuple((table * self.attention_scaling).to(dtype)[None] for table in (cos, sin))
        self.positions = torch.arange(tokens, device=device)[None]

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Give the module a layer's weights, named as inside the layer."""
        weights = {name: tensor.to(self.device, self.dtype) for name, tensor in tensors.items()}
        self.module.load_state_dict(weights, assign=True)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, hidden_size] -> the same, one layer further."""
        out = self.module(hidden, position_ids=self.positions, position_embeddings=self.rotary)
        return out if isinstance(out, torch.Tensor) else out[0]

    def rotate(self, key: torch.Tensor) -> torch.Tensor:
        """Keys [batch, tokens, kv_size] as a KV cache holds them: rotated, but not scaled. Same shape."""
        cos, sin = (table[0, : key.shape[1], None, :] / self.attention_scaling for table in self.rotary)
        heads = key.unflatten(-1, (-1, cos.shape[-1]))
        return gpt_attention.rotate(heads, cos, sin).flatten(-2)

    def watch(self, linear: str, see: Callable[[torch.Tensor], None]) -> RemovableHandle:
        """Call ``see`` with the input of a linear ("self_attn.q_proj") on every pass."""
        module = self.module.get_submodule(linear)
        return module.register_forward_pre_hook(lambda _, inputs: see(inputs[0]))

    def watch_output(self, linear: str, see: Callable[[torch.Tensor], None]) -> RemovableHandle:
        """Call ``see`` with the output of a linear on every pass."""
        module = self.module.get_submodule(linear)
        return module.register_forward_hook(lambda _, __, output: see(output))
