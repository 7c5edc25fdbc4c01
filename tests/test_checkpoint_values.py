"""What each tensor of a checkpoint may hold, rotary tables and shared embeddings included."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import structure_problems
from enginesmith.convert.targets.trtllm.values import Values, Zeros
from tests.checkpoint_folders import MANIFEST, WIDE, accepted, change, checkpoint_of, planned, refused, state


@pytest.mark.parametrize("axis", [0, 1])
def test_an_embedding_shared_by_ranks(axis: int, plain: Path) -> None:
    """As ModelOpt writes it: rows padded to a multiple of the ranks."""
    whole = Checkpoint(plain)
    table, name = whole.embedding().tokens, "transformer.vocab_embedding.weight"
    padded = torch.nn.functional.pad(table, (0, 0, 0, table.shape[0] % 2)) if axis == 0 else table
    state(plain, "use_parallel_embedding", True)
    state(plain, "embedding_sharding_dim", axis)
    assert any(name in problem for problem in structure_problems(Checkpoint(plain)))
    for rank, piece in enumerate(padded.chunk(2, axis)):
        change(whole.rank_file(rank), name, lambda _, piece=piece: piece.contiguous())  # type: ignore[misc]
    accepted(plain)
    assert torch.equal(Checkpoint(plain).embedding().tokens, table)


def first(name: str, value: float) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    """A change of a tensor's first value."""

    def edit(tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.flatten().clone()
        flat[0] = value
        return flat.view(tensor.shape)

    return name, edit


def negated(name: str) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    return name, lambda tensor: -tensor


def byte(name: str, value: int) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    """A change of a tensor's first byte."""

    def edit(tensor: torch.Tensor) -> torch.Tensor:
        raw = tensor.contiguous().view(torch.uint8).clone()
        raw.view(-1)[0] = value
        return raw.view(tensor.dtype)

    return name, edit


NAN = float("nan")
BAD_VALUES: dict[str, list[tuple[tuple[str, Callable[[torch.Tensor], torch.Tensor]], str]]] = {
    "W4A8_QSERVE_PER_GROUP": [
        (negated("mlp.fc.s1_scales"), "is not positive"),
        (first("mlp.fc.s1_scales", 0), "is not positive"),
        (first("mlp.fc.s2_scales", 0), "second scales outside of 1 to 16"),
        (first("mlp.fc.s2_scales", 17), "second scales outside of 1 to 16"),
        (negated("mlp.fc.s2_scales"), "second scales outside of 1 to 16"),
        (byte("mlp.fc.s2_zeros", 1), "s2_scales"),
    ],
    "W4A8_QSERVE_PER_CHANNEL": [
        (negated("mlp.fc.s1_scales"), "is not positive"),
        (negated("mlp.fc.s1_szeros"), "outside of 0 to 15"),
        (first("mlp.fc.s1_szeros", 1e-3), "whole multiples of s1_scales"),
    ],
    "W4A8_AWQ": [
        (negated("mlp.fc.weights_scaling_factor_2"), "is not positive"),
        (negated("mlp.fc.activation_scaling_factor"), "is not positive"),
        (negated("mlp.fc.weights_scaling_factor"), "is not positive"),
        (negated("mlp.fc.prequant_scaling_factor"), "is not positive"),
        (first("mlp.fc.weights_scaling_factor", NAN), "NaN"),
    ],
    "W4A16_GPTQ": [
        (first("mlp.fc.weights_scaling_factor", 0), "is not positive"),
        (first("mlp.fc.zero", NAN), "NaN"),
        (first("mlp.fc.zero", 1e-2), "multiples of weights_scaling_factor"),
        (first("mlp.fc.zero", 3e4), "multiples of weights_scaling_factor"),
    ],
    "W8A16": [
        (negated("mlp.fc.per_channel_scale"), "is negative"),
        (first("mlp.fc.per_channel_scale", NAN), "NaN"),
    ],
    "FP8": [
        (byte("mlp.fc.weight", 0x7F), "NaN"),
        (byte("mlp.fc.weight", 0xFF), "NaN"),
        (negated("mlp.fc.activation_scaling_factor"), "is not positive"),
    ],
    "W8A8_SQ_PER_TENSOR_PLUGIN": [
        (negated("mlp.proj.smoother"), "is not positive"),
        (negated("mlp.quantization_scaling_factor"), "is not positive"),
        (negated("mlp.fc.act_scale"), "is not positive"),
        (negated("input_layernorm.scale_to_int"), "is not positive"),
        (negated("attention.kv_cache_scaling_factor"), "is not positive"),
        (first("input_layernorm.weight", NAN), "NaN"),
    ],
    "W8A8_SQ_PER_CHANNEL": [
        (negated("mlp.fc.prequant_scaling_factor"), "is not positive"),
    ],
}


@pytest.mark.parametrize("quant", BAD_VALUES)
def test_values_that_no_tensor_may_have(quant: str, tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, WIDE, quant=quant, kv_cache="INT8")
    (folder / MANIFEST).unlink()
    checkpoint, path = Checkpoint(folder), folder / "rank0.safetensors"
    good = path.read_bytes()
    assert structure_problems(checkpoint) == []
    for (name, edit), words in BAD_VALUES[quant]:
        change(path, f"transformer.layers.1.{name}", edit)
        problems = structure_problems(checkpoint)
        assert len(problems) == 1
        assert f"transformer.layers.1.{name} " in problems[0]
        assert words in problems[0]
        path.write_bytes(good)


@pytest.mark.parametrize("quant", ["W8A8_SQ_PER_TENSOR_PLUGIN", "W8A8_SQ_PER_CHANNEL"])
def test_integers_may_be_the_least_of_all(quant: str, tmp_path: Path) -> None:
    """-128, which other tools round to; kernels multiply with it as with any other."""
    folder = checkpoint_of(tmp_path, WIDE, quant=quant, kv_cache="INT8")
    (folder / MANIFEST).unlink()
    name, edit = first("mlp.fc.weight", -128)
    change(folder / "rank0.safetensors", f"transformer.layers.1.{name}", edit)
    assert int(Checkpoint(folder).layer(1)[name].min()) == -128
    accepted(folder)


def test_a_tensor_too_many_is_refused_by_build_too(plain: Path) -> None:
    path = plain / "rank0.safetensors"
    tensors = load_file(path)
    path.unlink()
    save_file({**tensors, "transformer.layers.0.attention.q_layernorm.weight": torch.ones(16)}, path)
    assert any("is not one that config.json implies" in problem for problem in structure_problems(Checkpoint(plain)))
    refused(plain, "q_layernorm.weight' is not one that config.json implies", [planned])


def test_a_row_of_zeros_may_have_scale_zero(tmp_path: Path) -> None:
    """As TensorRT-LLM's own rounding of weights leaves it."""
    folder = checkpoint_of(tmp_path, WIDE, quant="W8A16")
    (folder / MANIFEST).unlink()
    change(folder / "rank0.safetensors", *first("transformer.layers.0.mlp.fc.per_channel_scale", 0))
    assert structure_problems(Checkpoint(folder)) == []


def tables(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The rotary tables as TensorRT-LLM computes them for plain rope."""
    model = checkpoint.model
    exponents = torch.arange(0, model.head_size, 2).double() / model.head_size
    frequencies, plain = ((theta**-exponents).float() for theta in (model.rotary_base, 1e4))
    positions = torch.arange(model.max_position_embeddings).float()
    angles, unscaled = torch.outer(positions, frequencies), torch.outer(positions, plain)
    return {
        "rotary_inv_freq": frequencies,
        "embed_positions_for_gpt_attention": torch.stack((angles.cos(), angles.sin()), -1).view(1, -1),
        "embed_positions": torch.cat((unscaled.sin(), unscaled.cos()), 1)[None],
    }


@pytest.mark.parametrize("model", [{}, {"rope_theta": 500000.0, "max_position_embeddings": 131072}])
def test_rotary_tables_that_config_does_not_ask_for(model: dict[str, Any], tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, model | {"num_hidden_layers": 1})
    (folder / MANIFEST).unlink()
    checkpoint, path = Checkpoint(folder), folder / "rank0.safetensors"
    tensors, right = load_file(path), tables(checkpoint)
    save_file(tensors | right, path)
    assert structure_problems(checkpoint) == []
    for name, table in right.items():
        wrong = [table[..., :-1], table.half(), table * NAN, -table, table * 1.001, table.roll(1, -1)]
        for changed in wrong:
            save_file(tensors | right | {name: changed.contiguous()}, path)
            if (changed.shape, changed.dtype) != (table.shape, table.dtype):
                refused(folder, name, [planned])
            assert any(f"tensor {name} " in problem for problem in structure_problems(checkpoint))
    save_file(tensors | {"embed_positions_for_gpt_attention": right["embed_positions_for_gpt_attention"]}, path)
    assert any("is there without rotary_inv_freq" in problem for problem in structure_problems(checkpoint))


@pytest.mark.parametrize("kind", ["yarn", "dynamic"])
def test_rotary_tables_that_config_asks_for(kind: str, tmp_path: Path) -> None:
    scaling = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 16}
    folder = checkpoint_of(tmp_path, {"rope_scaling": scaling})
    (folder / MANIFEST).unlink()
    checkpoint, path = Checkpoint(folder), folder / "rank0.safetensors"
    assert structure_problems(checkpoint) == []
    tensors = load_file(path)
    for name in ("rotary_inv_freq", "embed_positions_for_gpt_attention"):
        save_file(tensors | {name: tensors[name] * 1.001}, path)
        assert any(f"tensor {name} " in problem for problem in structure_problems(checkpoint))
        save_file({other: tensor for other, tensor in tensors.items() if other != name}, path)
        assert f"rank0.safetensors: tensor {name} is missing" in structure_problems(checkpoint)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.bfloat16])
def test_zeros_reach_from_the_least_to_the_largest_whole_number(dtype: torch.dtype) -> None:
    allowed, scale = Zeros("scales", 0, 15), torch.full((4,), 3.0)
    whole = torch.tensor([0.0, 1, 14, 15])

    def kept(numbers: torch.Tensor) -> torch.Tensor:
        return (-numbers * 3).to(torch.int8) if dtype == torch.int8 else (numbers * 3).to(dtype)

    assert allowed.problem(kept(whole), scale) is None
    for outside in [16.0] if dtype == torch.int8 else [16.0, -1.0]:
        beyond = allowed.problem(kept(torch.cat((whole[:3], torch.tensor([outside])))), scale)
        assert beyond == "holds multiples of scales outside of 0 to 15"
    between = kept(whole) + torch.tensor([0, 1, 0, 0]).to(dtype)
    assert allowed.problem(between, scale) == "is not made of whole multiples of scales"
    assert allowed.problem(kept(whole), torch.tensor([1.0, 0, 1, 1])) == "holds NaN or Inf"


def test_values_lie_inside_an_open_interval() -> None:
    inside = Values(0, 18, "fault")
    for numbers, problem in (([1, 16], None), ([0, 16], "fault"), ([1, 18], "fault")):
        for dtype in (torch.int8, torch.float8_e4m3fn, torch.float32):
            assert inside.problem(torch.tensor(numbers).to(dtype)) == problem
    for wrong in (math.nan, math.inf, -math.inf):
        assert Values().problem(torch.tensor([0.0, wrong])) == "holds NaN or Inf"
    assert Values().problem(torch.tensor([torch.finfo(torch.float32).max])) is None
