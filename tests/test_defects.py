"""What TensorRT-LLM 0.16's converter gets wrong for the Llama family: converted right here, or refused with the reason.

Numbers are those of the project's list of upstream defects.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.files.disk import write_json
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import measure, structure_problems
from enginesmith.convert.sources.folder import Source

from .conftest import ALGORITHMS, TINY, random_weights, write_model

PER_TOKEN = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"
Convert = Callable[..., Checkpoint]
Tiny = Callable[..., Path]


def check(checkpoint: Checkpoint, model: Path, limit: float = 0.3) -> None:
    """The structure is whole, and the integers compute what the source model computes.

    A random model's logits are wide, so that rounding alone gives up to 0.2 nats; anything misplaced gives nats.
    """
    assert structure_problems(checkpoint) == []
    accuracy = measure(checkpoint, model, str(model.parent / "ids.safetensors"), chunks=4, length=24)
    assert accuracy.kl < limit, accuracy


@pytest.mark.parametrize("quant", [None, *ALGORITHMS])
@pytest.mark.parametrize("tp", [1, 2])
def test_01_tied_embeddings(quant: str | None, tp: int, tiny: Tiny, converted: Convert) -> None:
    model = tiny(tie_word_embeddings=True)
    checkpoint = converted(model, quant=quant, kv_cache="INT8", tp_size=tp)
    check(checkpoint, model)


@pytest.mark.parametrize("quant", [None, *ALGORITHMS])
@pytest.mark.parametrize(("kv_heads", "tp"), [(2, 1), (2, 2), (2, 4), (1, 4)])
def test_02_05_11_attention_bias_and_few_kv_heads(
    quant: str | None, kv_heads: int, tp: int, tiny: Tiny, converted: Convert
) -> None:
    model = tiny(attention_bias=True, num_key_value_heads=kv_heads)
    checkpoint = converted(model, quant=quant, tp_size=tp)
    check(checkpoint, model)
    heads = max(kv_heads, tp)
    rank = load_file(checkpoint.rank_file(0))
    rows = (checkpoint.model.num_attention_heads + 2 * heads) // tp * checkpoint.model.head_size
    assert rank["transformer.layers.0.attention.qkv.weight"].shape[0] == rows


@pytest.mark.parametrize("quant", [None, *ALGORITHMS])
@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("tp", [1, 2])
def test_03_12_head_size_that_is_not_hidden_over_heads(
    quant: str | None, kv_heads: int, tp: int, tiny: Tiny, converted: Convert
) -> None:
    model = tiny(head_dim=24, num_key_value_heads=kv_heads)
    check(converted(model, quant=quant, tp_size=tp), model)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_08_odd_vocabulary(tp: int, tiny: Tiny, converted: Convert) -> None:
    model = tiny(vocab_size=101)
    checkpoint = converted(model, quant=PER_TOKEN, tp_size=tp)
    check(checkpoint, model)
    heads = torch.cat([load_file(checkpoint.rank_file(rank))["lm_head.weight"] for rank in range(tp)])
    assert heads.shape[0] == -(-101 // tp) * tp
    assert not heads[101:].any()


def test_09_13_sizes_that_do_not_divide(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(intermediate_size=97, num_hidden_layers=3)
    for options, words in (({"tp_size": 2}, "intermediate size 97"), ({"pp_size": 2}, "3 layers; sizes that do: 1, 3")):
        with pytest.raises(InputError, match=words):
            convert(ConvertOptions(str(model), str(tmp_path / "out"), **options))


@pytest.mark.parametrize("quant", ["W8A16", "W4A16"])
@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ({"hidden_size": 256, "intermediate_size": 480}, "mlp.fc on one of 2 ranks: out_features 240"),
        ({"hidden_size": 192, "intermediate_size": 384}, "attention.dense on one of 2 ranks: in_features 96"),
    ],
)
def test_06_weight_only_sizes_that_no_kernel_takes(
    quant: str, sizes: dict[str, int], line: str, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny(**sizes)
    with pytest.raises(InputError, match=rf"{line} must be a multiple of \d+ .*; sizes that work: \d+, \d+"):
        convert(ConvertOptions(str(model), str(tmp_path / "out"), quant=quant, tp_size=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "quant", ["FP8_PER_CHANNEL_PER_TOKEN", "FP8", "W4A16_AWQ", "W8A8_SQ_PER_CHANNEL", "W4A16_GPTQ", "W8A16_GPTQ"]
)
@pytest.mark.parametrize("tp", [1, 2])
def test_07_10_every_format_is_converted_on_a_cpu(quant: str, tp: int, tiny: Tiny, converted: Convert) -> None:
    model = tiny(hidden_size=256, intermediate_size=512, num_key_value_heads=4)
    check(converted(model, quant=quant, tp_size=tp, group_size=64, device="cpu"), model)


@pytest.mark.parametrize("quant", [None, *ALGORITHMS])
@pytest.mark.parametrize("tp", [1, 2])
def test_14_mlp_bias(quant: str | None, tp: int, tiny: Tiny, converted: Convert) -> None:
    model = tiny(mlp_bias=True)
    checkpoint = converted(model, quant=quant, tp_size=tp)
    assert checkpoint.config["mlp_bias"] is True
    check(checkpoint, model)


@pytest.mark.parametrize("quant", ALGORITHMS)
def test_15_rows_of_small_weights(quant: str, tmp_path: Path, converted: Convert) -> None:
    weights = random_weights(TINY)
    for part in ("self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"):
        weights[f"model.layers.0.{part}.weight"][5] *= 1e-3
    model = write_model(tmp_path / "hf", weights)
    checkpoint = converted(model, quant=quant)
    check(checkpoint, model)
    if "PER_CHANNEL" in quant:
        layer = checkpoint.layer(0)
        assert layer["mlp.proj.weight"][5].abs().max() == 127


@pytest.mark.parametrize("quant", ALGORITHMS)
def test_16_columns_rows_and_layers_of_zeros(quant: str, tmp_path: Path, converted: Convert) -> None:
    weights = random_weights(TINY)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.0.{name}.weight"][:, 3] = 0
    weights["model.layers.1.mlp.up_proj.weight"][7] = 0
    for name in weights:
        if name.startswith("model.layers.2.") and name.endswith("proj.weight"):
            weights[name].zero_()
    model = write_model(tmp_path / "hf", weights)
    checkpoint = converted(model, quant=quant, kv_cache="INT8")
    check(checkpoint, model)
    assert checkpoint.layer(0)["mlp.proj.weight"].any()


def test_17_the_cache_scale_leaves_queries_out(tmp_path: Path, converted: Convert) -> None:
    weights = random_weights(TINY)
    plain = write_model(tmp_path / "plain" / "hf", weights)
    for i in range(4):
        weights[f"model.layers.{i}.self_attn.q_proj.weight"] *= 30
    large = write_model(tmp_path / "large" / "hf", weights)
    name = "attention.kv_cache_scaling_factor"
    scales = [converted(model, kv_cache="INT8").layer(0)[name] for model in (plain, large)]
    assert torch.equal(*scales)


@pytest.mark.parametrize("style", ["transformers 4", "transformers 5"])
@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 32},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    ],
    ids=lambda scaling: scaling["rope_type"] if scaling else "default",
)  # fmt: skip
def test_18_both_config_styles(scaling: dict[str, Any] | None, style: str, tiny: Tiny, converted: Convert) -> None:
    model = tiny(torch_dtype="bfloat16")
    config = json.loads((model / "config.json").read_text())
    del config["rope_theta"], config["torch_dtype"]
    if style == "transformers 4":
        config |= {"rope_theta": 500000.0, "rope_scaling": scaling, "torch_dtype": "bfloat16"}
    else:
        rope = {"rope_theta": 500000.0, **(scaling or {"rope_type": "default"})}
        config |= {"rope_parameters": rope, "dtype": "bfloat16"}
    write_json(model / "config.json", config)
    checkpoint = converted(model, quant=PER_TOKEN, kv_cache="INT8", tp_size=2)
    assert checkpoint.config["rotary_base"] == 500000.0
    assert checkpoint.config["rotary_scaling"] == scaling
    assert checkpoint.dtype == "bfloat16"
    check(checkpoint, model)


def test_19_bfloat16_weights_are_rounded_once(tmp_path: Path, converted: Convert) -> None:
    weights = random_weights(TINY | {"torch_dtype": "bfloat16"})
    narrow = write_model(tmp_path / "narrow" / "hf", weights, torch_dtype="bfloat16")
    wide = {name: weight.float() for name, weight in weights.items()}
    exact = write_model(tmp_path / "wide" / "hf", wide, torch_dtype="float32")
    ours, theirs = (converted(model, quant=PER_TOKEN, dtype="bfloat16").layer(1) for model in (narrow, exact))
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_20_scales_are_exact_to_float32(tiny: Tiny, converted: Convert) -> None:
    model = tiny()
    layer = converted(model, quant=PER_TOKEN, alpha=0.5, fold=False).layer(0)
    weight = Source(model).layer(0)["mlp.down_proj.weight"].float() * layer["mlp.proj.smoother"]
    largest = weight.abs().amax(1)
    torch.testing.assert_close(layer["mlp.proj.per_channel_scale"][0], largest / 127, rtol=1e-6, atol=0)
    assert torch.equal(layer["mlp.proj.weight"], (weight * (127 / largest)[:, None]).round().to(torch.int8))


def test_21_loading_is_strict(tiny: Tiny, converted: Convert) -> None:
    checkpoint = converted(tiny(), quant=PER_TOKEN)
    (checkpoint.folder / "enginesmith.json").unlink()
    checkpoint = Checkpoint(checkpoint.folder)
    path = checkpoint.rank_file(0)
    tensors = load_file(path)
    scale = "transformer.layers.1.mlp.fc.per_channel_scale"
    for change, words in (
        ({"transformer.extra.weight": torch.zeros(1)}, "extra.weight is not one that config.json implies"),
        ({scale: tensors[scale].half()}, "is float16 [1, 96], config.json implies"),
        ({scale: tensors[scale] * float("nan")}, "holds NaN or Inf"),
        ({scale: -tensors[scale]}, "is not positive"),
        ({scale: tensors[scale][:, :5].contiguous()}, "is float32 [1, 5], config.json implies"),
    ):
        save_file({**tensors, **change}, path)
        problems = structure_problems(checkpoint)
        assert len(problems) == 1
        assert words in problems[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != scale}, path)
    assert structure_problems(checkpoint) == [f"rank0.safetensors: tensor {scale} is missing"]


def test_yarn_and_dynamic_bring_their_own_rotary_tables(tiny: Tiny, converted: Convert) -> None:
    """TensorRT-LLM 0.16 multiplies their frequencies by the factor when it makes the tables itself."""
    model = tiny(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16})
    checkpoint = converted(model, pp_size=2)
    for rank in range(2):
        tensors = load_file(checkpoint.rank_file(rank))
        angles = torch.outer(torch.arange(64).float(), tensors["rotary_inv_freq"])
        pairs = torch.stack((angles.cos(), angles.sin()), -1).view(1, -1)
        torch.testing.assert_close(tensors["embed_positions_for_gpt_attention"], pairs)
    check(checkpoint, model, limit=1e-4)


def test_smoothing_keeps_values_in_the_reach_of_keys(tmp_path: Path, converted: Convert) -> None:
    """An INT8 cache has one scale for keys and values; a fold of any size into v_proj must not spoil it."""
    weights = random_weights(TINY | {"num_key_value_heads": 4})
    for i in range(4):
        weights[f"model.layers.{i}.self_attn.o_proj.weight"] *= 100
        weights[f"model.layers.{i}.self_attn.v_proj.weight"] /= 100
    model = write_model(tmp_path / "hf", weights, num_key_value_heads=4)
    text = str(model.parent / "ids.safetensors")
    plain, cached = (
        measure(converted(model, quant=PER_TOKEN, kv_cache=cache), model, text, chunks=4, length=24).kl
        for cache in (None, "INT8")
    )
    assert cached < plain + 0.1
