"""GPT-NeoX, Pythia, Dolly: attention and MLP side by side, each behind its own LayerNorm; a part of each head turned;
queries, keys and values of a head in one module, head by head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..family import behind, renamed, stacked
from ..pieces import GROUPED, LAYER, PARALLEL, ROTARY, Norm
from ..rope import Rope
from .bloom import BLOOM


def read(said: Reader) -> dict[str, Any]:
    said.require("use_parallel_residual", True, "TensorRT-LLM's GPT-NeoX computes no other")
    return {"attn_bias": said.flag("attention_bias", True), "mlp_bias": True}


def config(model: Any) -> dict[str, Any]:
    """The engine makes its tables of ``rotary_base``, which upstream's converter does not write."""
    base = {} if model.rotary_base == 1e4 else {"rotary_base": model.rotary_base}
    return base | {"rotary_emb_base": model.rotary_base, "rotary_pct": model.rotary_dim / model.head_size}


MODULE = "attention.query_key_value"
QKV = [f"{MODULE}.{part}" for part in ("query", "key", "value")]
NAMED = renamed(BLOOM, QKV, ("attention.dense",), ("mlp.dense_h_to_4h",), ("mlp.dense_4h_to_h",))
GPT_NEOX = replace(
    NAMED,
    title="GPT-NeoX, Pythia, Dolly",
    architectures=("GPTNeoXForCausalLM",),
    spellings=("gpt_neox",),
    embedding="gpt_neox.embed_in.weight",
    embedding_norm=None,
    final_norm=Norm("ln_f", "gpt_neox.final_layer_norm", LAYER),
    head="embed_out.weight",
    layer="gpt_neox.layers.{i}.",
    arrangement=PARALLEL,
    norms=(
        Norm("input_layernorm", "input_layernorm", LAYER),
        Norm("post_attention_layernorm", "post_attention_layernorm", LAYER),
    ),
    groups=behind(NAMED.groups, {"post_layernorm": "post_attention_layernorm"}),
    views=stacked(MODULE, QKV, GROUPED),
    ignored=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
    positions=ROTARY,
    partly_turned=True,
    rope_types=(),
    rope=Rope(fraction=0.25),
    four_times=True,
    keys={"norm_epsilon": "layer_norm_eps", "rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    implied=("num_key_value_heads", "head_size"),
    activations=dict.fromkeys(("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "gelu"),
    tied=False,
    fixed_epsilon=True,
    read=read,
    config=config,
)
