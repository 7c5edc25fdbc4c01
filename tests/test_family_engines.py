"""Engines of every kind of family: the nodes of their networks, releases, GPUs, positions and windows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from enginesmith.build.checkpoint_folder import CheckpointFolder
from enginesmith.build.network import rank_nodes, totals
from enginesmith.convert.models.families.gpt2 import GPT2
from enginesmith.convert.prove.verify import measure

from .command import run
from .family_models import MOST_KL, WIDE, converted, random_model, write_family


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
