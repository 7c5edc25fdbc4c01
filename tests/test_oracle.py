"""The float model, from token ids to logits, beside transformers' own: every family, float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from enginesmith.convert.models.families import FAMILIES
from enginesmith.convert.prove.execution import Reference
from enginesmith.convert.sources.folder import Source

from .family_models import random_model

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
TINY_HEADS = {"num_key_value_heads": 1, "head_dim": 24}
FOUR = {"intermediate_size": 256}
LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
FALSE = {"tie_word_embeddings": False}
CASES: dict[str, list[dict[str, Any]]] = {
    "LlamaForCausalLM": [
        {},
        {"attention_bias": True, "mlp_bias": True, "head_dim": 24},
        {"tie_word_embeddings": True, "num_key_value_heads": 4},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e3}, "num_key_value_heads": 1},
    ],
    "MistralForCausalLM": [{"sliding_window": None}, {"sliding_window": 7, "head_dim": 24}],
    "Qwen2ForCausalLM": [{}, {"tie_word_embeddings": True}],
    "Qwen2ForSequenceClassification": [{"num_labels": 3, "pad_token_id": 0, "tie_word_embeddings": True}],
    "Qwen3ForCausalLM": [{"head_dim": 24}, {"head_dim": 16, "tie_word_embeddings": True, "num_key_value_heads": 4}],
    "GemmaForCausalLM": [TINY_HEADS, {"head_dim": 16, "hidden_act": "gelu_pytorch_tanh"}],
    "Gemma2ForCausalLM": [
        {"head_dim": 24, "query_pre_attn_scalar": 30, "sliding_window": 7},
        {"head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ],
    "GPTBigCodeForCausalLM": [{}, {"n_inner": 80, "activation_function": "gelu_new", **FALSE}],
    "Starcoder2ForCausalLM": [{}, {"num_key_value_heads": 4, "sliding_window": None, **FALSE}],
    "GPT2LMHeadModel": [{}, {"n_inner": 80, "activation_function": "gelu_pytorch_tanh", **FALSE}],
    "OPTForCausalLM": [{"ffn_dim": 96, "word_embed_proj_dim": 64}, {"ffn_dim": 256, "activation_function": "gelu"}],
    "BloomForCausalLM": [{}, {"num_attention_heads": 6, "hidden_size": 48, **FALSE}],
    "GPTNeoXForCausalLM": [
        {"intermediate_size": 256},
        {
            "intermediate_size": 256,
            "attention_bias": False,
            "hidden_act": "gelu_new",
            "rope_parameters": {"rope_theta": 5e3, "partial_rotary_factor": 0.5, "rope_type": "default"},
        },
    ],
    "GPTJForCausalLM": [{"rotary_dim": 8}, {"rotary_dim": 16, "activation_function": "gelu"}],
    "PhiForCausalLM": [
        {"num_key_value_heads": 4},
        {
            "num_key_value_heads": 4,
            "hidden_act": "gelu",
            "rope_parameters": {"rope_theta": 5e3, "partial_rotary_factor": 0.25, "rope_type": "default"},
        },
    ],
    "MptForCausalLM": [
        {"d_model": 64, "n_heads": 4, "n_layers": 3},
        {"d_model": 48, "n_heads": 6, "n_layers": 2, "attn_config": {"clip_qkv": 0.3}},
    ],
    "Gemma3ForCausalLM": [
        {"head_dim": 24, "query_pre_attn_scalar": 30, "sliding_window": 7, "sliding_window_pattern": 2},
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "final_logit_softcapping": 30.0,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
        },
    ],
    "Phi3ForCausalLM": [
        {"pad_token_id": 0},
        {"pad_token_id": 0, "partial_rotary_factor": 0.5, "num_key_value_heads": 4, "tie_word_embeddings": True},
        *(
            {
                "pad_token_id": 0,
                "original_max_position_embeddings": original,
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1.0 + i / 10 for i in range(8)],
                    "long_factor": [2.0 + i for i in range(8)],
                },
            }
            for original in (16, 32)
        ),
    ],
    "GraniteForCausalLM": [
        {},
        {
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.1,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ],
    "FalconForCausalLM": [
        {"bias": True, "num_kv_heads": 1},
        {"ffn_hidden_size": 96, **FALSE},
        {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
    ],
    **{
        f"{kind}{task}": [FOUR, {**FOUR, "hidden_act": "gelu_new", "num_hidden_layers": 1, **more}]
        for kind in ("Bert", "Roberta")
        for task, more in (("Model", {}), ("ForQuestionAnswering", {}), ("ForSequenceClassification", LABELS))
    },
    "CohereForCausalLM": [{"attention_bias": True}, {"use_qk_norm": True, "logit_scale": 0.3, **FALSE}],
    "MixtralForCausalLM": [
        {"num_local_experts": 4},
        {"num_local_experts": 3, "num_experts_per_tok": 1, "head_dim": 24},
    ],
    "Qwen2MoeForCausalLM": [
        {
            "num_experts": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
            "num_experts_per_tok": 2,
        },
        {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48, "norm_topk_prob": True},
    ],
    "DbrxForCausalLM": [
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 3,
            "max_seq_len": 64,
            "attn_config": {"kv_n_heads": kv_heads, "clip_qkv": clip, "rope_theta": 5000.0},
            "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": top, "hidden_size": 64},
        }
        for kv_heads, clip, top in ((2, 0.3, 2), (1, 8.0, 3))
    ],
    "Qwen3MoeForCausalLM": [
        {
            "num_experts": 5,
            "moe_intermediate_size": 32,
            "num_experts_per_tok": 2,
            "head_dim": 24,
            "norm_topk_prob": True,
        },
        {"num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 3, "head_dim": 16},
    ],
    "NemotronForCausalLM": [{"head_dim": 24}, {"attention_bias": True, "mlp_bias": True, "head_dim": 16}],
}
# Classes whose code is not transformers'.
REMOTE = (
    "QWenLMHeadModel", "InternLMForCausalLM", "InternLM2ForCausalLM", "BaichuanForCausalLM", "BaiChuanForCausalLM",
    "ExaoneForCausalLM", "MPTForCausalLM", "ChatGLMModel", "ChatGLMForCausalLM", "RWForCausalLM",
)  # fmt: skip


def outputs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What transformers' model gives."""
    made = model(ids)
    if "start_logits" in made:
        return torch.stack((made.start_logits, made.end_logits), -1)
    found: torch.Tensor = made.logits if "logits" in made else made.last_hidden_state
    return found


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """What the family's description makes of a folder: [sequences, tokens, vocab_size] of a decoder."""
    source = Source(folder)
    reference = Reference(source, ids, CPU)
    for index in range(source.model.num_hidden_layers):
        reference.layer(index, source.layer(index))
    if source.model.family.task is not None:
        return source.encoder_head()(reference.hidden)
    head = reference.head()
    made = head.logits(head.normed(reference.hidden.flatten(0, 1))).view(*ids.shape, -1)
    return made[:, -1] if source.model.family.classifies else made


def test_every_family_has_a_case() -> None:
    assert {*CASES, *REMOTE} == {name for family in FAMILIES for name in family.architectures}


@pytest.mark.parametrize(
    ("architecture", "changes"), [(name, changes) for name, cases in CASES.items() for changes in cases]
)
def test_logits_are_transformers(architecture: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(tmp_path, architecture, SIZES | changes)
    ids = torch.randint(2, SIZES["vocab_size"], (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs = outputs(model, ids)
    ours = logits(tmp_path, ids)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
