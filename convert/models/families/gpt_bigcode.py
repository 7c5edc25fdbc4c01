"""StarCoder, SantaCoder and Granite code models: GPT-2 with one key and one value for all heads, nothing transposed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..pieces import View
from .gpt2 import GPT2, KEY, QUERY, VALUE
from .gpt2 import config as gpt_config
from .gpt2 import read as read_gpt


def read(said: Reader) -> dict[str, Any]:
    said.require("multi_query", True, "heads with keys of their own are in another order")
    return read_gpt(said) | {"num_key_value_heads": 1}


def config(model: Any) -> dict[str, Any]:
    return gpt_config(model) | {"gpt_variant": "starcoder"}


QKV, *OTHERS = GPT2.linears
GPT_BIGCODE = replace(
    GPT2,
    title="StarCoder, SantaCoder, Granite code 20B and 34B",
    architectures=("GPTBigCodeForCausalLM",),
    spellings=("gpt_bigcode",),
    linears=(replace(QKV, out_features=("query_size", "kv_size", "kv_size")), *OTHERS),
    views={part: View("attn.c_attn", piece) for piece, part in enumerate((QUERY, KEY, VALUE))},
    implied=("head_size",),
    activations={name: name for name in ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")},
    read=read,
    config=config,
)
