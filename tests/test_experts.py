"""Mixtures of experts: who sees which tokens, where experts lie, and that what is written is what was read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.build.checkpoint_folder import CheckpointFolder
from enginesmith.build.network import rank_nodes, totals
from enginesmith.convert.errors import InputError
from enginesmith.convert.models.forward import LayerForward
from enginesmith.convert.numbers.rounding import weight_only
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import measure, structure_problems
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.statistics.calibrate import calibrate_layer
from enginesmith.convert.statistics.wanted import EVERYTHING
from enginesmith.plugins.mixture_of_experts import Routed, route

from .command import run
from .conftest import assert_same_layers
from .family_models import converted, write_family

CPU = torch.device("cpu")
TITLES = ("Mixtral", "Qwen1.5-MoE, Qwen2-MoE", "Qwen3-MoE")


@pytest.fixture(params=TITLES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_family(tmp_path / "hf", request.param)


def test_routes_by_hand() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    shares = scores.softmax(-1)
    assert torch.allclose(route(scores, 2, False)[0], torch.tensor([0.0, shares[0, 1], shares[0, 2]]))
    assert torch.allclose(route(scores, 2, True).sum(-1), torch.ones(2))
    assert torch.allclose(route(scores, 1, True), torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("everyone", [False, True])
def test_the_sum_is_the_same_whoever_reads(everyone: bool) -> None:
    x, scores = torch.randn(7, 4), torch.randn(7, 3)
    routed = Routed(x, route(scores, 2, True), everyone)
    for expert in range(3):
        routed.add(expert, routed.read(expert) * (expert + 1))
    wanted = x * (route(scores, 2, True) @ torch.tensor([1.0, 2.0, 3.0]))[:, None]
    torch.testing.assert_close(routed.total, wanted)


@pytest.mark.parametrize("everyone", [False, True])
def test_experts_are_calibrated_on_their_tokens(everyone: bool, model: Path) -> None:
    source = Source(model)
    forward = LayerForward(source.model, 24, torch.float32, CPU, everyone=everyone)
    forward.load(0, source.layer(0))
    hidden = torch.randn(5, 24, 256, generator=torch.Generator().manual_seed(0))
    passed, plain = hidden.clone(), hidden.clone()
    seen = calibrate_layer(forward, passed, EVERYTHING, 0, 2)
    counts = [seen.tokens[mlp.first[0].name] for mlp in source.model.family.experts]
    assert sum(counts) == 5 * 24 * (source.model.num_experts if everyone else source.model.top_k)
    other = LayerForward(source.model, 24, torch.float32, CPU)
    other.load(0, source.layer(0))
    calibrate_layer(other, plain, EVERYTHING, 0, 5)
    torch.testing.assert_close(passed, plain)
    gram = seen.inputs[source.model.family.experts[0].first[0].name].gram_matrix()
    assert torch.allclose(gram, gram.T)


def test_an_expert_without_tokens_is_converted(tmp_path: Path) -> None:
    """One that the router never chooses: ranges are 0, nothing is divided by it."""
    folder = write_family(tmp_path / "hf", "Mixtral", num_local_experts=6)
    weights = load_file(folder / "model.safetensors")
    for i in range(2):
        weights[f"model.layers.{i}.block_sparse_moe.gate.weight"][5] = 0
        weights[f"model.layers.{i}.block_sparse_moe.gate.weight"][:5] *= 1e-3
        norm = f"model.layers.{i}.post_attention_layernorm.weight"
        weights[norm] = weights[norm].abs()
    save_file(weights, folder / "model.safetensors")
    for algo in ("FP8", "W4A16_GPTQ"):
        checkpoint = converted(folder, tmp_path / algo, quant=algo)
        assert structure_problems(checkpoint) == []


@pytest.mark.parametrize(("tp", "ep"), [(2, 2), (4, 2), (4, 4)])
@pytest.mark.parametrize("algo", [None, "W8A16", "FP8", "W4A16_AWQ"])
def test_experts_dealt_out_are_those_of_one_rank(tp: int, ep: int, algo: str | None, tmp_path: Path) -> None:
    folder = write_family(tmp_path / "hf", "Qwen1.5-MoE, Qwen2-MoE", num_key_value_heads=4)
    whole = converted(folder, tmp_path / "whole", quant=algo, group_size=64)
    dealt = converted(folder, tmp_path / "dealt", quant=algo, tp_size=tp, moe_ep_size=ep, group_size=64)
    assert structure_problems(dealt) == []
    assert_same_layers(whole, dealt)
    mapping = json.loads((tmp_path / "dealt/config.json").read_text())["mapping"]
    assert (mapping["moe_tp_size"], mapping["moe_ep_size"]) == (tp // ep, ep)
    held = load_file(tmp_path / "dealt/rank1.safetensors")["transformer.layers.0.mlp.fc.weight"]
    assert len(held) == 4 // ep


def test_int8_experts_are_their_weights_rounded(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "hf", "Mixtral")
    tensors = converted(folder, tmp_path / "ck", quant="W8A16").layer(1)
    weights = load_file(folder / "model.safetensors")
    for e in range(4):
        prefix = f"model.layers.1.block_sparse_moe.experts.{e}."
        fused = torch.cat([weights[f"{prefix}w3.weight"], weights[f"{prefix}w1.weight"]])
        assert torch.equal(tensors[f"mlp.experts.{e}.fc.weight"], weight_only(fused.float(), 8).values)


def test_experts_that_saw_few_tokens_are_named(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "hf", "Mixtral", num_local_experts=8)
    words = ["convert", "--model_dir", folder, "--quant", "FP8", "--calib", tmp_path / "ids.safetensors"]
    words += ["--calib_size", 8, "--calib_seq_len", 24, "--dtype", "float16"]
    said = run(*words, "--output_dir", tmp_path / "few").stderr
    assert "experts that saw fewer than 64 calibration tokens: " in said
    assert "fewer than" not in run(*words, "--output_dir", tmp_path / "all", "--calib_all_experts").stderr
    counts = json.loads((tmp_path / "few/enginesmith.json").read_text())["layers"][0]["experts"]["tokens"]
    assert sum(counts) == 8 * 24 * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quant": "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"}, "executes experts in it; use FP8, W8A16 or W4A16_AWQ"),
        ({"quant": "FP8_PER_CHANNEL_PER_TOKEN"}, "not for MixtralForCausalLM"),
        ({"tp_size": 2, "moe_ep_size": 3}, "--moe_ep_size 3 must divide --tp_size 2 and 4 experts"),
        (
            {"tp_size": 2, "moe_tp_size": 2, "moe_ep_size": 2},
            "--moe_tp_size 2 times --moe_ep_size 2 must be --tp_size 2",
        ),
        (
            {"quant": "W8A16", "exclude": ("*layers.0.mlp*",)},
            "give a pattern without them, as model.layers.0.self_attn",
        ),
        ({"quant": "FP8", "save_stats": "stats"}, "--save_stats: statistics of experts are not kept in a file"),
    ],
)
def test_what_no_engine_executes_is_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path / "hf", "Mixtral")
    if "save_stats" in options:
        options = options | {"save_stats": str(tmp_path / "stats")}
    with pytest.raises(InputError, match=words):
        converted(folder, tmp_path / "ck", **options)
    assert not (tmp_path / "ck").exists()


def test_experts_are_asked_for_where_there_are_some(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "hf", "GPT-2")
    for option in ({"moe_ep_size": 2, "tp_size": 2}, {"calib_all_experts": True}, {"moe_tp_size": 1}):
        with pytest.raises(InputError, match="GPT2LMHeadModel has no experts; leave it away"):
            converted(folder, tmp_path / "ck", **option)


def test_their_plugin_is_planned(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "hf", "Mixtral")
    converted(folder, tmp_path / "ck", quant="W4A16_AWQ", tp_size=2)
    found = totals(rank_nodes(CheckpointFolder(tmp_path / "ck"), 0))
    assert found["MixtureOfExperts"] == 2
    assert found["WeightOnlyGroupwiseQuantMatmul"] == 4
    assert "WeightOnlyQuantMatmul" not in found
    assert Checkpoint(tmp_path / "ck").model.num_experts == 4


@pytest.mark.parametrize(
    ("title", "algo", "right", "wrong", "words"),
    [
        ("Mixtral", "W4A16_AWQ", "1.2", "0.18", "is known to TensorRT-LLM 0.19.0 and later"),
        ("Mixtral", "W4A16_GPTQ", "0.17", "1.0", "is known to TensorRT-LLM up to 0.18.2"),
        ("Qwen3-MoE", "FP8", "1.0", "0.20", "is known to TensorRT-LLM 1.0.0 and later"),
    ],
)
def test_releases_hold_experts_each_in_their_way(
    title: str, algo: str, right: str, wrong: str, words: str, tmp_path: Path
) -> None:
    folder = write_family(tmp_path / "hf", title)
    converted(folder, tmp_path / "ck", quant=algo)
    gpu = "H100" if algo == "FP8" else "A100"
    plan = ["build", "--checkpoint_dir", tmp_path / "ck", "--plan_only", "--gpu", gpu, "--max_seq_len", 64]
    assert words in run(*plan, "--output_dir", tmp_path / "old", "--release", wrong, expect=2).stderr
    run(*plan, "--output_dir", tmp_path / "new", "--release", right)


def test_experts_of_awq_are_rounded_by_gptq_where_it_is_asked_for(tmp_path: Path) -> None:
    model, kl = write_family(tmp_path / "hf", "Mixtral"), {}
    for rounding in ("nearest", "gptq"):
        checkpoint = converted(model, tmp_path / rounding, quant="W4A16_AWQ", group_size=64, rounding=rounding)
        kl[rounding] = measure(checkpoint, model, str(model.parent / "ids.safetensors"), 8, 24).kl
    nearest, gptq = (load_file(tmp_path / rounding / "rank0.safetensors") for rounding in kl)
    for name in ("mlp.fc.weight", "mlp.proj.weight"):
        assert not torch.equal(nearest[f"transformer.layers.0.{name}"], gptq[f"transformer.layers.0.{name}"])
    assert kl["gptq"] < kl["nearest"]


def test_experts_in_groups_are_held_as_later_releases_read_them(tmp_path: Path) -> None:
    """int8 [experts, out / 2, in], scales [experts, out, groups], one factor of the input for all."""
    folder = write_family(tmp_path / "hf", "Qwen3-MoE", moe_intermediate_size=256)
    converted(folder, tmp_path / "ck", quant="W4A16_AWQ")
    held = load_file(tmp_path / "ck/rank0.safetensors")
    prefix = "transformer.layers.0.mlp."
    assert held[f"{prefix}fc.weight"].shape == (4, 256, 256)
    assert held[f"{prefix}fc.weights_scaling_factor"].shape == (4, 512, 2)
    assert held[f"{prefix}proj.weights_scaling_factor"].shape == (4, 256, 2)
    assert torch.equal(held[f"{prefix}fc.prequant_scaling_factor"], torch.ones(1, 256, dtype=torch.float16))
    assert held[f"{prefix}router.weight"].dtype == torch.float32


def test_experts_have_one_order_whatever_the_gpu(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "hf", "Mixtral")
    held = []
    for sm in (80, 90):
        converted(folder, tmp_path / str(sm), quant="W8A16", sm=sm)
        held.append(load_file(tmp_path / str(sm) / "rank0.safetensors"))
        assert structure_problems(Checkpoint(tmp_path / str(sm))) == []
    assert torch.equal(*(one["transformer.layers.0.mlp.fc.weight"] for one in held))
    assert not torch.equal(*(one["transformer.layers.0.attention.qkv.weight"] for one in held))


def test_a_comparison_counts_experts_bits(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "hf", "Qwen1.5-MoE, Qwen2-MoE")
    words = ["compare", "--model_dir", folder, "--quant", "none,W8A16", "--dtype", "float16", "--json"]
    words += ["--text", tmp_path / "ids.safetensors", "--chunks", 4, "--seq_len", 24]
    none, w8a16 = json.loads(run(*words).stdout)["algorithms"]
    assert none["bits_per_weight"] == 16
    assert 8 < w8a16["bits_per_weight"] < 8.2
