"""BertAttention: attention without a cache, over all tokens of a sequence."""

from __future__ import annotations

from .identity import Plugin

# The fields that a model decides; the plugin has more.
PLUGIN = Plugin("BertAttention", ("num_heads", "head_size"), "bert_attention_plugin", "attention")
