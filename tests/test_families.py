"""Every family end to end: each algorithm that its engine computes, ranks, plans, and what is refused before work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from enginesmith.build.checkpoint_folder import CheckpointFolder
from enginesmith.build.network import rank_nodes, totals
from enginesmith.convert.errors import InputError
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.models.families import FAMILIES
from enginesmith.convert.models.families.gpt2 import GPT2
from enginesmith.convert.prove.verify import measure, structure_problems
from enginesmith.convert.targets.trtllm.checkpoint import Checkpoint
from enginesmith.convert.targets.trtllm.formats import SCHEMES

from .command import run
from .conftest import assert_same_layers
from .test_oracle import random_model

SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
NEW = [name for family in FAMILIES[2:] for name in family.architectures]
FAMILY = {name: family for family in FAMILIES for name in family.architectures}
# Mean KL against the float32 source, a few times what was seen.
MOST_KL = {None: 1e-5, "W8A16": 1e-3, "W8A16_GPTQ": 1e-3, "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN": 0.01}


@pytest.fixture(scope="module", params=NEW)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    wide = {"num_key_value_heads": 4} if request.param == "GPT2LMHeadModel" else {}
    random_model(folder / "hf", request.param, SIZES | wide)
    ids = torch.randint(101, (8, 24), generator=torch.Generator().manual_seed(1))
    save_file({"input_ids": ids}, folder / "ids.safetensors")
    return folder / "hf"


def converted(model: Path, folder: Path, **options: Any) -> Checkpoint:
    settings = {"calib": str(model.parent / "ids.safetensors"), "calib_size": 8, "calib_seq_len": 24}
    convert(ConvertOptions(str(model), str(folder), dtype="float16", **settings, **options))
    return Checkpoint(folder)


def family_of(model: Path) -> Any:
    return FAMILY[json.loads((model / "config.json").read_text())["architectures"][0]]


@pytest.mark.parametrize("algo", [None, *SCHEMES])
def test_what_is_written_computes_what_the_source_does(algo: str | None, model: Path, tmp_path: Path) -> None:
    if algo in family_of(model).refused:
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
    assert accuracy.kl < MOST_KL.get(algo, 0.1)
    assert accuracy.beyond is None


@pytest.mark.parametrize("algo", ["W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "W8A8_SQ_PER_TENSOR_PLUGIN"])
def test_layer_norms_are_quantized_by_their_own_plugin(algo: str, tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    random_model(folder / "hf", GPT2.architectures[0], SIZES)
    save_file({"input_ids": torch.arange(96).view(4, 24)}, folder / "ids.safetensors")
    converted(folder / "hf", tmp_path / "ck", quant=algo)
    found = totals(rank_nodes(CheckpointFolder(tmp_path / "ck"), 0))
    assert found["LayernormQuantization"] == 4
    assert "RmsnormQuantization" not in found
    said = run("plugins", tmp_path / "ck").stdout
    assert "LayernormQuantization" in said
    assert "input_layernorm" in said


def test_norms_of_heads_need_a_release_that_has_them(tmp_path: Path) -> None:
    random_model(tmp_path / "hf", "Qwen3ForCausalLM", SIZES)
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
    ],
)
def test_what_an_engine_would_not_compute_is_refused(config: dict[str, Any], words: str) -> None:
    sizes = {"num_hidden_layers": 40, "num_attention_heads": 4, "vocab_size": 9, "intermediate_size": 8}
    sizes |= {"hidden_size": 8, "n_embd": 8, "n_head": 4, "n_layer": 2}
    with pytest.raises(InputError, match=words):
        read_model(sizes | config)


@pytest.mark.parametrize("algo", [name for name in SCHEMES if name.startswith("W8A8_SQ")])
def test_layer_norms_are_not_rotated(algo: str, tmp_path: Path) -> None:
    random_model(tmp_path / "hf", GPT2.architectures[0], SIZES)
    save_file({"input_ids": torch.arange(96).view(4, 24)}, tmp_path / "ids.safetensors")
    with pytest.raises(InputError, match="--rotate: norms of GPT2LMHeadModel"):
        converted(tmp_path / "hf", tmp_path / "ck", quant=algo, rotate=True)


def test_yarn_scales_the_norm_of_queries_where_there_is_one(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 8.0, "rope_theta": 1e3, "original_max_position_embeddings": 8}
    random_model(tmp_path / "hf", "Qwen3ForCausalLM", SIZES | {"rope_parameters": yarn, "head_dim": 32})
    save_file({"input_ids": torch.arange(96).view(4, 24)}, tmp_path / "ids.safetensors")
    checkpoint = converted(tmp_path / "hf", tmp_path / "ck", quant=None)
    accuracy = measure(checkpoint, tmp_path / "hf", str(tmp_path / "ids.safetensors"), 4, 24)
    assert accuracy.kl < MOST_KL[None]


def test_families_are_listed() -> None:
    said = run("families").stdout
    for family in FAMILIES:
        assert f"{', '.join(family.architectures)}: TensorRT-LLM {family.since}" in said
    told = json.loads(run("families", "--json").stdout)
    assert {name: entry["refused"] for entry in told for name in entry["architectures"]} == {
        name: dict(family.refused) for name, family in FAMILY.items()
    }
