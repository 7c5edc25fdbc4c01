"""What config.json of a model may not say, and what an engine would drop: refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.models.families import FAMILIES
from enginesmith.convert.models.families.gpt2 import GPT2
from enginesmith.convert.targets.trtllm.formats import SCHEMES

from .family_models import WIDE, converted, random_model, say, write_family

SQUARE = {"num_attention_heads": 1, "intermediate_size": 32}


LONG = {
    "original_max_position_embeddings": 32,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32},
}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"], "scale_attn_weights": False}, "scale_attn_weights must be true"),
        ({"architectures": ["GPT2LMHeadModel"], "reorder_and_upcast_attn": True}, "reorder_and_upcast_attn must be"),
        ({"architectures": ["GPT2LMHeadModel"], "activation_function": "relu"}, "activation_function 'relu'"),
        ({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}, "windows on some layers"),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["sliding_attention"]}, "windows on some layers"),
        ({"architectures": ["Qwen3ForCausalLM"], "attention_bias": True}, "attention_bias must be false"),
        ({"architectures": ["GPTBigCodeForCausalLM"], "multi_query": False}, "multi_query must be true"),
        ({"architectures": ["GPTBigCodeForCausalLM"], "activation_function": "gelu"}, "activation_function 'gelu'"),
        ({"architectures": ["Starcoder2ForCausalLM"], "use_bias": False}, "use_bias must be true"),
        ({"architectures": ["Gemma2ForCausalLM"], "layer_types": ["full_attention"] * 40}, "on every 2. layer"),
        ({"architectures": ["Gemma3ForCausalLM"], "layer_types": ["full_attention"] * 40}, "on every 6. layer"),
        ({"architectures": ["Gemma3ForCausalLM"], "rope_parameters": {"rope_theta": 1e4}}, "an object with full_att"),
        (
            {
                "architectures": ["Gemma3ForCausalLM"],
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "linear", "factor": 2.0},
                },
            },
            r"sliding_attention\.rope_type must be default",
        ),
        (
            {"architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": 50.0},
            "attn_logit_softcapping must be null",
        ),
        ({"architectures": ["GemmaForCausalLM"], "rope_theta": 5e5}, "rope_theta must be 10000"),
        ({"architectures": ["GemmaForCausalLM"], "attention_bias": True}, "attention_bias must be false"),
        ({"architectures": ["QWenLMHeadModel"], "rotary_pct": 0.5}, "rotary_pct 1"),
        ({"architectures": ["CohereForCausalLM"]}, "rope_theta must be stated"),
        (
            {"architectures": ["BaichuanForCausalLM"], "rope_theta": 5e5, "model_version": "v1_7b"},
            "rope_theta must be 1",
        ),
        ({"architectures": ["InternLMForCausalLM"], "rotary": {"base": 5e3}}, r"rotary\.base must be 10000"),
        ({"architectures": ["InternLM2ForCausalLM"], "bias": True}, "bias must be false"),
        ({"architectures": ["PhiForCausalLM"], "num_key_value_heads": 2}, "num_key_value_heads must be 4"),
        ({"architectures": ["PhiForCausalLM"], "qk_layernorm": True}, "qk_layernorm must be false"),
        ({"architectures": ["OPTForCausalLM"], "do_layer_norm_before": False}, "do_layer_norm_before must be true"),
        ({"architectures": ["OPTForCausalLM"], "word_embed_proj_dim": 4}, "word_embed_proj_dim must be hidden_size"),
        (
            {"architectures": ["GPTNeoXForCausalLM"], "use_parallel_residual": False},
            "use_parallel_residual must be true",
        ),
        (
            {"architectures": ["GPTNeoXForCausalLM"], "intermediate_size": 16, "num_attention_heads": 1},
            "intermediate_size 16 must be 32",
        ),
        ({"architectures": ["GPTNeoXForCausalLM"], "layer_norm_eps": 1e-6, **SQUARE}, "layer_norm_eps must be 1e-05"),
        ({"architectures": ["Qwen2MoeForCausalLM"], "mlp_only_layers": [0]}, "mlp_only_layers empty"),
        ({"architectures": ["Qwen2MoeForCausalLM"], "num_experts": 10**6}, "at most 4096 are known"),
        ({"architectures": ["MixtralForCausalLM"], "router_jitter_noise": 0.1}, "router_jitter_noise must be 0"),
        ({"architectures": ["FalconForCausalLM"], "alibi": True}, "alibi must be false with such layers"),
        (
            {
                "architectures": ["ChatGLMModel"],
                "rope_ratio": 50,
                "padded_vocab_size": 9,
                "num_layers": 40,
                "ffn_hidden_size": 8,
            },
            "chatglm_version must be chatglm2 or chatglm3",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "its engine ends in the head of a language model"),
        ({"architectures": ["RobertaModel"], "pad_token_id": 9999, "intermediate_size": 32}, "positions lie before it"),
        *(
            ({"architectures": [name], "is_causal": False}, "is_causal is false; engines attend")
            for family in FAMILIES
            for name in family.architectures
            if family.task is None
        ),
        (
            {"architectures": ["GPT2LMHeadModel"], "n_embd": 10, "hidden_size": 10},
            "n_embd 10 is no multiple of n_head 4$",
        ),
        ({"architectures": ["GPT2LMHeadModel"], "hidden_size": 20, "n_embd": 20}, "head size 5 is odd; kernels take"),
    ],
)
def test_what_an_engine_would_not_compute_is_refused(config: dict[str, Any], words: str) -> None:
    sizes = {"num_hidden_layers": 40, "num_attention_heads": 4, "vocab_size": 9, "intermediate_size": 8}
    sizes |= {"hidden_size": 8, "n_embd": 8, "n_head": 4, "n_layer": 40}
    with pytest.raises(InputError, match=words):
        read_model(sizes | config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"norm_type": "rmsnorm"}, "norm_type must be one of"),
        ({"attn_config": {"qk_ln": True}}, r"attn_config\.qk_ln must be false"),
        ({"attn_config": {"alibi": False}}, r"attn_config\.alibi must be true"),
        ({"attn_config": {"rope": True}}, r"attn_config\.rope must be false"),
        ({"attn_config": {"softmax_scale": 0.5}}, r"attn_config\.softmax_scale must be null"),
        ({"ffn_config": {"ffn_type": "mptglu"}}, "ffn_config must be null"),
        ({"no_bias": False}, "no_bias must be true"),
        ({"expansion_ratio": 2}, "expansion_ratio must be 4"),
    ],
)
def test_what_no_mpt_engine_builds(config: dict[str, Any], words: str) -> None:
    sizes = {"architectures": ["MptForCausalLM"], "d_model": 8, "n_heads": 4, "n_layers": 2, "vocab_size": 9}
    with pytest.raises(InputError, match=words):
        read_model(sizes | config)


def test_qwen_ends_where_it_would_scale_what_no_engine_does() -> None:
    sizes = {"architectures": ["QWenLMHeadModel"], "hidden_size": 8, "num_attention_heads": 4, "num_hidden_layers": 2}
    sizes |= {"vocab_size": 9, "intermediate_size": 16, "max_position_embeddings": 32768, "seq_length": 2048}
    assert read_model(sizes).max_position_embeddings == 32768
    assert read_model(sizes | {"use_dynamic_ntk": True, "use_logn_attn": True}).max_position_embeddings == 2048


@pytest.mark.parametrize(
    ("title", "options", "reason"),
    [
        ("Gemma 2", {}, "quantizes the norms behind attention and MLP too"),
        ("Qwen3", {}, "drops the norms of queries and keys without a word"),
        ("MPT", {"attn_config": {"clip_qkv": 6.0}}, "drops clip_qkv without a word"),
        ("MPT", {"attn_config": {"alibi_bias_max": 4}}, "takes alibi_bias_max for 8 without a word"),
        ("Falcon RW", {}, "has no ALiBi that is scaled"),
        ("Phi-3, Phi-3.5, Phi-4", LONG, "drops the factors of long sequences without a word"),
    ],
)
def test_what_an_engine_would_drop_is_refused(title: str, options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """Before any work, and with what to take instead."""
    folder = write_family(tmp_path / "hf", title, **options)
    with pytest.raises(InputError, match=f"{reason}.*; use W8A8_SQ_PER_CHANNEL, FP8 or W8A16"):
        converted(folder, tmp_path / "ck", quant="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN")
    converted(folder, tmp_path / "ck", quant="W8A8_SQ_PER_CHANNEL")


@pytest.mark.parametrize("algo", [name for name in SCHEMES if name.startswith("W8A8_SQ")])
def test_layer_norms_are_not_rotated(algo: str, tmp_path: Path) -> None:
    random_model(tmp_path / "hf", GPT2.architectures[0], WIDE)
    save_file({"input_ids": torch.arange(96).view(4, 24)}, tmp_path / "ids.safetensors")
    with pytest.raises(InputError, match="--rotate: norms of GPT2LMHeadModel"):
        converted(tmp_path / "hf", tmp_path / "ck", quant=algo, rotate=True)


def test_biases_of_qwen2_are_not_left_away(tmp_path: Path) -> None:
    random_model(tmp_path / "hf", "Qwen2ForCausalLM", WIDE)
    weights = load_file(tmp_path / "hf/model.safetensors")
    for name in [name for name in weights if name.endswith("_proj.bias")]:
        del weights[name]
    save_file(weights, tmp_path / "hf/model.safetensors")
    say(tmp_path / "hf", bias=True)
    with pytest.raises(InputError, match=r"q_proj\.bias and 5 more missing"):
        converted(tmp_path / "hf", tmp_path / "ck", quant="W8A16")
