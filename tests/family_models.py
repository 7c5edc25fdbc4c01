"""A tiny random model of every family, by its title: transformers' own, or weights of the shapes that config.json
implies, where a family's code is its authors'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.models.shapes import hugging_face_shapes
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint

# Mean KL against the float32 source, a few times what was seen.
MOST_KL = {None: 1e-5, "W8A16": 1e-3, "W8A16_GPTQ": 1e-3, "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN": 0.01}
WIDE: dict[str, Any] = {
    "vocab_size": 102, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
FOUR_TIMES = {"intermediate_size": 1024, "num_key_value_heads": 4}
QWEN = {"kv_channels": 64, "seq_length": 64, "intermediate_size": 1024}
GLM = {
    "padded_vocab_size": 102, "ffn_hidden_size": 512, "num_layers": 2, "kv_channels": 64, "multi_query_group_num": 2,
    "multi_query_attention": True, "add_qkv_bias": True, "seq_length": 64,
}  # fmt: skip
MOE = {"num_experts": 4, "moe_intermediate_size": 256, "num_experts_per_tok": 2}
RW = {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True}
# (class, changes of WIDE)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama, Yi, DeepSeek-LLM, SmolLM": ("LlamaForCausalLM", {}),
    "Mistral, Mistral-Nemo": ("MistralForCausalLM", {"head_dim": 128}),
    "Mixtral": ("MixtralForCausalLM", {"num_local_experts": 4, "intermediate_size": 256}),
    "DBRX": (
        "DbrxForCausalLM",
        {
            "d_model": 256,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 256, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 256},
        },
    ),
    "Qwen1.5-MoE, Qwen2-MoE": ("Qwen2MoeForCausalLM", {**MOE, "shared_expert_intermediate_size": 256}),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", {**MOE, "head_dim": 64, "norm_topk_prob": True}),
    "Qwen": ("QWenLMHeadModel", QWEN),
    "Qwen2, Qwen2.5": ("Qwen2ForCausalLM", {}),
    "Qwen2, sequence classification": ("Qwen2ForSequenceClassification", {"num_labels": 4, "pad_token_id": 0}),
    "Qwen3": ("Qwen3ForCausalLM", {"head_dim": 64}),
    "Gemma": ("GemmaForCausalLM", {"head_dim": 128, "num_key_value_heads": 1}),
    "Gemma 2": ("Gemma2ForCausalLM", {"head_dim": 64, "query_pre_attn_scalar": 100, "sliding_window": 32}),
    "Gemma 3, text": (
        "Gemma3ForCausalLM",
        {"head_dim": 64, "query_pre_attn_scalar": 100, "sliding_window": 32, "sliding_window_pattern": 2},
    ),
    "Phi-3, Phi-3.5, Phi-4": ("Phi3ForCausalLM", {"pad_token_id": 0}),
    "Phi-4-mini": ("Phi3ForCausalLM", {"pad_token_id": 0, "partial_rotary_factor": 0.75, "tie_word_embeddings": True}),
    "Granite 3, dense": (
        "GraniteForCausalLM",
        {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1},
    ),
    "InternLM": ("InternLMForCausalLM", {"bias": True, "num_key_value_heads": 4}),
    "InternLM2, InternLM2.5": ("InternLM2ForCausalLM", {"bias": False}),
    "Baichuan 1 7B": ("BaichuanForCausalLM", {"model_version": "v1_7b"}),
    "Baichuan 1 13B": ("BaichuanForCausalLM", {"model_version": "v1_13b", "model_max_length": 64}),
    "Baichuan 2 7B": ("BaichuanForCausalLM", {"model_version": "v2_7b"}),
    "Baichuan 2 13B": ("BaichuanForCausalLM", {"model_version": "v2_13b", "model_max_length": 64}),
    "EXAONE 3, 3.5": ("ExaoneForCausalLM", {"num_layers": 2}),
    "ChatGLM2, ChatGLM3": ("ChatGLMModel", GLM),
    "GLM-4": ("ChatGLMForCausalLM", {**GLM, "rope_ratio": 50, "add_bias_linear": True}),
    "GPT-2": ("GPT2LMHeadModel", {"n_inner": 512}),
    "StarCoder, SantaCoder, Granite code 20B and 34B": ("GPTBigCodeForCausalLM", {"n_inner": 512}),
    "StarCoder2": ("Starcoder2ForCausalLM", {}),
    "OPT": ("OPTForCausalLM", {"ffn_dim": 512, "word_embed_proj_dim": 256}),
    "BLOOM, BLOOMZ": ("BloomForCausalLM", {}),
    "GPT-NeoX, Pythia, Dolly": ("GPTNeoXForCausalLM", FOUR_TIMES),
    "GPT-J": ("GPTJForCausalLM", {"rotary_dim": 16}),
    "Phi-1, Phi-1.5, Phi-2": ("PhiForCausalLM", {"num_key_value_heads": 4}),
    "MPT": ("MptForCausalLM", {"d_model": 256, "n_heads": 4, "n_layers": 2}),
    "Falcon 7B, 11B": ("FalconForCausalLM", {"bias": True, "ffn_hidden_size": 512}),
    "Falcon 40B, 180B": ("FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "Falcon RW": ("FalconForCausalLM", RW),
    "Nemotron, Minitron": ("NemotronForCausalLM", {"head_dim": 64, "attention_bias": True, "mlp_bias": True}),
    "Cohere Command R": ("CohereForCausalLM", {"attention_bias": True}),
    "Cohere Command R+": ("CohereForCausalLM", {"use_qk_norm": True, "tie_word_embeddings": False}),
    "BERT": ("BertModel", FOUR_TIMES),
    "BERT, question answering": ("BertForQuestionAnswering", FOUR_TIMES),
    "BERT, sequence classification": ("BertForSequenceClassification", FOUR_TIMES),
    "RoBERTa": ("RobertaModel", FOUR_TIMES),
    "RoBERTa, question answering": ("RobertaForQuestionAnswering", FOUR_TIMES),
    "RoBERTa, sequence classification": ("RobertaForSequenceClassification", FOUR_TIMES),
}


def write_family(folder: Path, title: str, **changes: Any) -> Path:
    """The family's model in a folder, in float32, and token ids beside the folder."""
    architecture, own = MODELS[title]
    sizes = WIDE | own | changes
    if hasattr(transformers, architecture):
        random_model(folder, architecture, sizes)
    else:
        drawn_model(folder, {"architectures": [architecture], "torch_dtype": "float32"} | sizes)
    ids = torch.randint(WIDE["vocab_size"], (8, 24), generator=torch.Generator().manual_seed(1))
    save_file({"input_ids": ids}, folder.parent / "ids.safetensors")
    return folder


def random_model(folder: Path, architecture: str, sizes: dict[str, Any]) -> Any:
    """A random float32 model of transformers, saved; its norms and biases are not what they start as."""
    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    model = kind(kind.config_class(**sizes)).eval()
    for name, weight in model.named_parameters():
        if "norm" in name or "ln_" in name or name.endswith("bias"):
            weight.data += torch.randn_like(weight) * 0.3
    model.save_pretrained(folder)
    return model


def drawn_model(folder: Path, config: dict[str, Any]) -> None:
    """Random float32 weights of the shapes that a config.json implies."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    draw = torch.Generator().manual_seed(0)
    model = read_model(config)
    weights = {}
    for name, shape in hugging_face_shapes(model).items():
        noise = torch.randn(shape, generator=draw)
        weights[name] = 1 + 0.3 * noise if len(shape) == 1 and "bias" not in name else 0.05 * noise
    if model.tied:
        del weights[model.family.head]
    save_file(weights, folder / "model.safetensors")


def converted(model: Path, folder: Path, **options: Any) -> Checkpoint:
    """A model's checkpoint in float16, calibrated on the token ids beside it."""
    settings = {"calib": str(model.parent / "ids.safetensors"), "calib_size": 8, "calib_seq_len": 24}
    convert(ConvertOptions(str(model), str(folder), dtype="float16", **settings, **options))
    return Checkpoint(folder)


def say(folder: Path, **config: Any) -> None:
    """Keys that a folder's config.json says besides."""
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | config))
