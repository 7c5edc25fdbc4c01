"""Every family end to end: each algorithm that its engine computes, ranks, plans, and what is refused before work."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from enginesmith.build.checkpoint_folder import CheckpointFolder
from enginesmith.build.network import rank_nodes, totals
from enginesmith.convert.errors import InputError
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.models.families import FAMILIES
from enginesmith.convert.models.families.gpt2 import GPT2
from enginesmith.convert.prove.verify import measure, structure_problems
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.targets.trtllm.checkpoint import Checkpoint
from enginesmith.convert.targets.trtllm.formats import SCHEMES
from enginesmith.convert.targets.trtllm.honoured import left_out

from .command import run
from .conftest import assert_same_layers
from .family_models import MODELS, WIDE, random_model, write_family

FAMILY = {family.title: family for family in FAMILIES}
# Llama under other names, and what is built of the same pieces as another.
ALIKE = ("InternLM", "InternLM2, InternLM2.5", "EXAONE 3, 3.5", "Qwen", "Baichuan 1 7B", "Baichuan 1 13B")
SOME = (None, "W4A16_AWQ", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "W8A8_SQ_PER_TENSOR_PLUGIN")
CASES = [(title, algo) for title in MODELS for algo in (SOME if title in ALIKE else [None, *SCHEMES])][2 * 16 :]
SQUARE = {"num_attention_heads": 1, "intermediate_size": 32}
LONG = {
    "original_max_position_embeddings": 32,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32},
}
# Mean KL against the float32 source, a few times what was seen.
MOST_KL = {None: 1e-5, "W8A16": 1e-3, "W8A16_GPTQ": 1e-3, "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN": 0.01}

# Distance of an encoder's hidden states from the float32 source's, whose GELU is exact and whose epsilon is smaller.
MOST_DISTANCE = {None: 0.002, "W8A16": 0.01, "W8A16_GPTQ": 0.01}
# Distance of unquantized hidden states in float16, whose steps are 0.001 apart; and where two scores are nearly equal,
# so that a token may be sent to another expert.
MOST_ROUNDED, MOST_SENT_ELSEWHERE = 0.002, 0.03


def test_every_family_has_a_model() -> None:
    assert MODELS.keys() == FAMILY.keys()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's model; made once."""
    return cache(lambda title: write_family(tmp_path_factory.mktemp("family") / "hf", title))


def converted(model: Path, folder: Path, **options: Any) -> Checkpoint:
    settings = {"calib": str(model.parent / "ids.safetensors"), "calib_size": 8, "calib_seq_len": 24}
    convert(ConvertOptions(str(model), str(folder), dtype="float16", **settings, **options))
    return Checkpoint(folder)


@pytest.mark.parametrize(("title", "algo"), CASES)
def test_what_is_written_computes_what_the_source_does(
    title: str, algo: str | None, models: Callable[[str], Path], tmp_path: Path
) -> None:
    model, family = models(title), FAMILY[title]
    if algo in left_out(family):
        with pytest.raises(InputError, match=f"{algo}: not for"):
            converted(model, tmp_path / "ck", quant=algo)
        assert not (tmp_path / "ck").exists()
        return
    whole = converted(model, tmp_path / "ck", quant=algo)
    many = converted(model, tmp_path / "many", quant=algo, tp_size=2)
    for checkpoint in (whole, many):
        assert structure_problems(checkpoint) == []
    assert_same_layers(whole, many)
    accuracy = measure(whole, model, str(model.parent / "ids.safetensors"), 8, 24)
    assert accuracy.beyond is None
    if algo is None:
        assert max(accuracy.layer_errors) < (MOST_SENT_ELSEWHERE if family.experts or family.mixture else MOST_ROUNDED)
    if family.task is not None:
        assert accuracy.distance < MOST_DISTANCE.get(algo, 0.15)
        assert accuracy.cosine > 1 - MOST_DISTANCE.get(algo, 0.15) ** 2
    if family.task is None or family.task.projections:
        assert accuracy.kl < MOST_KL.get(algo, 0.1)


@pytest.mark.parametrize("title", [family.title for family in FAMILIES])
def test_stages(title: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    """Layers on two pipeline stages are those of one; where an engine has no stages, they are refused."""
    model = models(title)
    if not FAMILY[title].pipelined or Source(model).model.shares_embedding:
        with pytest.raises(InputError, match=r"--pp_size 2: engines of \w+ have one stage; use --tp_size"):
            converted(model, tmp_path / "staged", quant="W8A16", pp_size=2)
        return
    staged = converted(model, tmp_path / "staged", quant="W8A16", tp_size=2, pp_size=2)
    assert structure_problems(staged) == []
    assert_same_layers(converted(model, tmp_path / "ck", quant="W8A16"), staged)


@pytest.mark.parametrize("algo", ["W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "W8A8_SQ_PER_TENSOR_PLUGIN"])
def test_layer_norms_are_quantized_by_their_own_plugin(algo: str, tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    random_model(folder / "hf", GPT2.architectures[0], WIDE)
    save_file({"input_ids": torch.arange(96).view(4, 24)}, folder / "ids.safetensors")
    converted(folder / "hf", tmp_path / "ck", quant=algo)
    found = totals(rank_nodes(CheckpointFolder(tmp_path / "ck"), 0))
    assert found["LayernormQuantization"] == 4
    assert "RmsnormQuantization" not in found
    said = run("plugins", tmp_path / "ck").stdout
    assert "LayernormQuantization" in said
    assert "input_layernorm" in said


# Nodes of one layer on one of two ranks without quantization, from TensorRT-LLM 0.16's network builder.
@pytest.mark.parametrize(
    ("title", "products", "sums"),
    [
        ("Llama, Yi, DeepSeek-LLM, SmolLM", 4, 2),
        ("Gemma", 5, 2),
        ("Gemma 2", 5, 2),
        ("GPT-J", 4, 1),
        ("Phi-1, Phi-1.5, Phi-2", 4, 2),
        ("Falcon 7B, 11B", 4, 1),
        ("Falcon 40B, 180B", 4, 1),
        ("Cohere Command R", 4, 2),
    ],
)
def test_a_layer_has_the_nodes_of_its_network(
    title: str, products: int, sums: int, models: Callable[[str], Path], tmp_path: Path
) -> None:
    converted(models(title), tmp_path / "ck", tp_size=2)
    layer = [node for node in rank_nodes(CheckpointFolder(tmp_path / "ck"), 1) if node.layer == 0]
    assert {name: count for name, count in totals(layer).items() if name in ("Gemm", "AllReduce")} == {
        "AllReduce": sums,
        "Gemm": products,
    }


@pytest.mark.parametrize("title", ["BLOOM, BLOOMZ", "MPT"])
def test_positions_without_end_are_planned_as_trtllm_build_does(
    title: str, models: Callable[[str], Path], tmp_path: Path
) -> None:
    converted(models(title), tmp_path / "ck", quant="W8A16")
    run("build", "--checkpoint_dir", tmp_path / "ck", "--plan_only", "--gpu", "A100", "--output_dir", tmp_path / "plan")
    assert json.loads((tmp_path / "plan" / "build_config.json").read_text())["max_seq_len"] == 2048


@pytest.mark.parametrize(("title", "instead"), [("Gemma 2", "W8A8_SQ_PER_CHANNEL"), ("Mixtral", "W8A8_SQ_PER_CHANNEL")])
def test_what_a_gpu_cannot_run_is_answered_with_what_the_family_can_have(
    title: str, instead: str, models: Callable[[str], Path], tmp_path: Path
) -> None:
    converted(models(title), tmp_path / "ck", quant="FP8")
    words = ["build", "--checkpoint_dir", tmp_path / "ck", "--plan_only", "--output_dir", tmp_path / "plan"]
    assert run(*words, "--gpu", "A100", expect=2).stderr.endswith(f"; use {instead}\n")
    converted(models(title), tmp_path / "other", quant=instead)


def test_norms_of_heads_need_a_release_that_has_them(tmp_path: Path) -> None:
    random_model(tmp_path / "hf", "Qwen3ForCausalLM", WIDE)
    converted_ids = {"input_ids": torch.arange(96).view(4, 24)}
    save_file(converted_ids, tmp_path / "ids.safetensors")
    converted(tmp_path / "hf", tmp_path / "ck", quant="W8A16")
    words = ["build", "--checkpoint_dir", tmp_path / "ck", "--plan_only", "--gpu", "A100", "--max_seq_len", 64]
    refused = run(*words, "--output_dir", tmp_path / "old", "--release", "0.16", expect=2)
    assert "known to TensorRT-LLM 1.0.0 and later, not 0.16.0" in refused.stderr
    run(*words, "--output_dir", tmp_path / "new", "--release", "1.0")


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


def test_yarn_scales_the_norm_of_queries_where_there_is_one(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 8.0, "rope_theta": 1e3, "original_max_position_embeddings": 8}
    random_model(tmp_path / "hf", "Qwen3ForCausalLM", WIDE | {"rope_parameters": yarn, "head_dim": 32})
    save_file({"input_ids": torch.arange(96).view(4, 24)}, tmp_path / "ids.safetensors")
    checkpoint = converted(tmp_path / "hf", tmp_path / "ck", quant=None)
    accuracy = measure(checkpoint, tmp_path / "hf", str(tmp_path / "ids.safetensors"), 4, 24)
    assert accuracy.kl < MOST_KL[None]


TIED = [
    name
    for name, (kind, _) in MODELS.items()
    if hasattr(transformers, kind) and name != "DBRX" and FAMILY[name].head is not None
]


@pytest.mark.parametrize("title", TIED)
def test_a_tied_embedding_is_read_back(title: str, tmp_path: Path) -> None:
    write_family(tmp_path / "hf", title, tie_word_embeddings=True)
    checkpoint = converted(tmp_path / "hf", tmp_path / "ck", quant="W8A16")
    assert structure_problems(checkpoint) == []
    assert measure(checkpoint, tmp_path / "hf", str(tmp_path / "ids.safetensors"), 4, 24).kl < MOST_KL["W8A16"]
    run("plugins", tmp_path / "ck")
    words = ["build", "--checkpoint_dir", tmp_path / "ck", "--output_dir", tmp_path / "plan", "--plan_only"]
    run(*words, "--gpu", "A100", "--max_seq_len", 64)


def gpt2(folder: Path, **config: Any) -> Path:
    """A random GPT-2 whose config.json says something besides."""
    random_model(folder / "hf", GPT2.architectures[0], WIDE)
    save_file({"input_ids": torch.arange(96).view(4, 24)}, folder / "ids.safetensors")
    say(folder / "hf", **config)
    return folder / "hf"


def say(folder: Path, **config: Any) -> None:
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | config))


def test_keys_that_gpt2_does_not_have_change_nothing(tmp_path: Path) -> None:
    plain = read_model(json.loads((gpt2(tmp_path / "a") / "config.json").read_text()))
    model = gpt2(tmp_path / "b", num_key_value_heads=2, head_dim=8)
    assert read_model(json.loads((model / "config.json").read_text())) == plain
    checkpoint = converted(model, tmp_path / "ck", quant="W8A16")
    manifest = json.loads((tmp_path / "ck/enginesmith.json").read_text())
    assert "max_position_embeddings" not in str(manifest["source_notes"])
    assert measure(checkpoint, model, str(model.parent / "ids.safetensors"), 4, 24).kl < MOST_KL["W8A16"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_key_value_heads": 2}, "num_key_value_heads must be 4: GPT2LMHeadModel shares no keys"),
        ({"rotary_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rotary_scaling must be null: GPT2LMHeadModel has"),
        ({"rotary_scaling": {"rope_type": "linear", "factor": 2.0}}, "rotary_scaling must be null"),
    ],
)
def test_what_a_checkpoint_of_gpt2_may_not_say(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    converted(gpt2(tmp_path), tmp_path / "ck", quant="W8A16")
    say(tmp_path / "ck", **config)
    (tmp_path / "ck/enginesmith.json").unlink()
    assert words in run("verify", tmp_path / "ck", expect=2).stderr
    plan = ["build", "--checkpoint_dir", tmp_path / "ck", "--output_dir", tmp_path / "plan", "--plan_only"]
    assert words in run(*plan, "--gpu", "A100", expect=2).stderr


def test_no_engine_goes_beyond_learned_positions(tmp_path: Path) -> None:
    converted(gpt2(tmp_path), tmp_path / "ck", quant="W8A16")
    words = ["build", "--checkpoint_dir", tmp_path / "ck", "--output_dir", tmp_path / "plan", "--plan_only"]
    refused = run(*words, "--gpu", "A100", "--max_seq_len", 65, expect=2)
    assert "--max_seq_len 65 is beyond the 64 positions that the model has learned; give at most 64" in refused.stderr
    run(*words, "--gpu", "A100", "--max_seq_len", 64)


def test_a_table_of_positions_that_float16_cannot_hold_is_named(tmp_path: Path) -> None:
    model = gpt2(tmp_path)
    weights = load_file(model / "model.safetensors")
    save_file(
        weights | {"transformer.wpe.weight": weights["transformer.wpe.weight"] * 5e6}, model / "model.safetensors"
    )
    with pytest.raises(InputError, match=r"transformer\.wpe\.weight does not fit float16"):
        converted(model, tmp_path / "ck", quant="W8A16")


def test_gpt2_that_is_quantized_already_is_not_read(tmp_path: Path) -> None:
    """Its tools store what GPT-2 has transposed as it is in other families."""
    model = gpt2(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 64})
    weights = load_file(model / "model.safetensors")
    weights["transformer.h.0.attn.c_proj.qweight"] = torch.zeros(32, 256, dtype=torch.int32)
    save_file(weights, model / "model.safetensors")
    for requantize in (True, False):
        with pytest.raises(InputError, match="quantized by gptq is not read; give the unquantized model"):
            converted(model, tmp_path / "ck", quant="W4A16_GPTQ", requantize=requantize)


def test_biases_of_qwen2_are_not_left_away(tmp_path: Path) -> None:
    random_model(tmp_path / "hf", "Qwen2ForCausalLM", WIDE)
    weights = load_file(tmp_path / "hf/model.safetensors")
    for name in [name for name in weights if name.endswith("_proj.bias")]:
        del weights[name]
    save_file(weights, tmp_path / "hf/model.safetensors")
    say(tmp_path / "hf", bias=True)
    with pytest.raises(InputError, match=r"q_proj\.bias and 5 more missing"):
        converted(tmp_path / "hf", tmp_path / "ck", quant="W8A16")


@pytest.mark.parametrize(("title", "wanted"), [("Gemma 2", "32,64"), ("Gemma 3, text", "32,64")])
def test_windows_of_some_layers_are_served(title: str, wanted: str, tmp_path: Path) -> None:
    """They are recorded beside the checkpoint, planned, and given to the server layer by layer."""
    folder = write_family(tmp_path / "hf", title)
    checkpoint = converted(folder, tmp_path / "ck", quant="W8A16")
    assert checkpoint.windows == (32, None)
    assert checkpoint.sliding_window is None
    assert [checkpoint.model.window_of(layer) for layer in range(2)] == [32, None]
    words = ["build", "--checkpoint_dir", tmp_path / "ck", "--plan_only", "--gpu", "A100", "--max_seq_len", 64]
    said = run(*words, "--output_dir", tmp_path / "plan", "--release", "1.0").stderr
    assert f"max_attention_window_size {wanted}" in said
    accuracy = measure(checkpoint, folder, str(tmp_path / "ids.safetensors"), 8, 24)
    assert accuracy.kl < MOST_KL["W8A16"]


def test_a_window_bounds_what_layers_see(tmp_path: Path) -> None:
    """Sequences may be longer than the window of some layers; the checkpoint computes what the source does."""
    folder = write_family(tmp_path / "hf", "Gemma 2", sliding_window=5)
    checkpoint = converted(folder, tmp_path / "ck", quant=None)
    assert measure(checkpoint, folder, str(tmp_path / "ids.safetensors"), 8, 24).kl < MOST_KL[None]


def test_families_are_listed() -> None:
    said = run("families").stdout
    for family in FAMILIES:
        assert f"{family.title} ({', '.join(family.architectures)}): TensorRT-LLM {family.since} to 1.2.1" in said
    told = json.loads(run("families", "--json").stdout)
    assert {entry["title"]: entry["refused"] for entry in told} == {f.title: left_out(f) for f in FAMILIES}


def test_the_readme_has_the_table() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert run("families", "--markdown").stdout in readme


def test_statistics_of_sandwiched_layers_are_kept(tmp_path: Path) -> None:
    """Norms behind attention and MLP are looked at too."""
    folder = write_family(tmp_path / "hf", "Gemma 2")
    first = converted(folder, tmp_path / "ck", quant="W4A16_AWQ", save_stats=str(tmp_path / "stats"))
    again = converted(folder, tmp_path / "again", quant="W4A16_AWQ", stats=str(tmp_path / "stats"))
    assert_same_layers(first, again)
