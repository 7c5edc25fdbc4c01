"""Folders of INT8, FP8 and ModelOpt's AWQ, kept as they are or quantized anew, and AutoRound's."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import measure, structure_problems
from enginesmith.convert.sources.folder import Source

from .command import run
from .conftest import DATA
from .readymade_folders import PART, Folder

FOLDERS = sorted(path.parent for path in (DATA / "scaled").glob("*/dequantized.json"))
PLACE = "model.layers.0.self_attn.k_proj"
Converted = Callable[..., Checkpoint]


@pytest.fixture(params=FOLDERS, ids=[folder.name for folder in FOLDERS])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of one of them, with token ids beside it."""
    copy = Path(shutil.copytree(request.param, tmp_path / "hf"))
    save_file(
        {"input_ids": torch.randint(32, (8, 24), generator=torch.Generator().manual_seed(0))},
        tmp_path / "ids.safetensors",
    )
    return copy


def test_weights_are_what_the_formula_makes_of_them(folder: Path) -> None:
    source = Source(folder)
    source.check_ready_made()
    noted = json.loads((folder / "dequantized.json").read_text())["sha256 of float32 weights"]
    assert source.packed == noted.keys()
    layer = source.layer(0)
    read = {name: layer[f"{name.split('.', 3)[3]}.weight"] for name in noted}
    assert {name: hashlib.sha256(weight.numpy().tobytes()).hexdigest() for name, weight in read.items()} == noted


# What each of them becomes as it is.
KEPT = {
    "compressed-fp8-static-kv": "FP8",
    "compressed-w8a8-static": "W8A8_SQ_PER_CHANNEL",
    "modelopt-fp8-kv": "FP8",
    "modelopt-int4-awq-g128": "W4A16_AWQ",
    "modelopt-int8-sq": "W8A8_SQ_PER_CHANNEL",
}


def by_suffix(tensors: dict[str, torch.Tensor], linear: str) -> dict[str, torch.Tensor]:
    """A linear's tensors, by their last names."""
    return {name[len(linear) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{linear}.")}


def check_kept(own: dict[str, torch.Tensor], parts: list[dict[str, torch.Tensor]]) -> list[bool]:
    """A linear of a checkpoint is, to the bit, those of a folder one below the other; FP8's have the largest scale of
    theirs. Returns which of them were rounded to it."""
    scales = [part["weight_scale"].float() for part in parts]
    rounded = [False] * len(parts)
    values = torch.cat([signed(part["weight"]) for part in parts])
    if own["weight"].dtype == torch.float8_e4m3fn:
        largest, sizes = max(scales).reshape(1), [len(part["weight"]) for part in parts]
        rounded = [bool(scale != largest) for scale in scales]
        times = torch.cat([(scale / largest).expand(size) for scale, size in zip(scales, sizes, strict=True)])
        values = (values * times[:, None]).to(torch.float8_e4m3fn).float()
        assert torch.equal(own["weights_scaling_factor"], largest)
    elif parts[0]["weight"].dtype == torch.uint8:
        assert torch.equal(own["weights_scaling_factor"].t(), torch.cat(scales).half())
    else:
        assert torch.equal(own["weights_scaling_factor"], torch.cat([scale.reshape(-1) for scale in scales]))
    assert torch.equal(own["weight"].float(), values)
    for part in parts:
        if "input_scale" in part:
            range_ = part["input_scale"].float().reshape(1)
            torch.testing.assert_close(own["activation_scaling_factor"], range_, rtol=1e-6, atol=0)
        if "prequant_scaling_factor" in own:
            factor = own["prequant_scaling_factor"].flatten()
            assert torch.equal(factor, part.get("pre_quant_scale", torch.ones_like(factor)).to(factor.dtype))
        else:
            assert "pre_quant_scale" not in part
    return rounded


def signed(weight: torch.Tensor) -> torch.Tensor:
    """The values of a weight; two rows of 4 bits a byte, the first of them in the low bits, one after the other."""
    if weight.dtype != torch.uint8:
        return weight.float()
    nibbles = torch.stack([weight & 15, weight >> 4], 1).flatten(0, 1).float()
    return torch.where(nibbles < 8, nibbles, nibbles - 16)


def test_they_are_kept(folder: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    algorithm = KEPT[request.node.callspec.id]
    words = ["--model_dir", folder, "--output_dir", tmp_path / "out"]
    said = run("convert", *words, "--quant", "W8A16", expect=2).stderr
    assert f"weights become {algorithm} as they are; leave --quant away, or give --requantize" in said
    assert not (tmp_path / "out").exists()
    done = run("convert", *words)
    assert f"{algorithm} repacked from " in done.stdout
    checkpoint, held = Checkpoint(tmp_path / "out"), load_file(folder / "model.safetensors")
    assert checkpoint.quant == algorithm
    assert structure_problems(checkpoint) == []
    expected = []
    for index in range(checkpoint.model.num_hidden_layers):
        layer, again = checkpoint.layer(index), dict[str, Any]()
        for linear in checkpoint.model.family.linears:
            own = by_suffix(layer, linear.name)
            parts = [by_suffix(held, f"model.layers.{index}.{part}") for part in linear.parts]
            rounded = check_kept(own, parts)
            if any(rounded):
                names = [part for part, changed in zip(linear.parts, rounded, strict=True) if changed]
                again[linear.name] = {"rounded_again": names}
        expected.append(again)
    told = json.loads((tmp_path / "out" / "enginesmith.json").read_text())["layers"]
    assert told == (expected if any(expected) else [])
    assert ("the largest scale is kept" in done.stderr) == any(expected) == (algorithm == "FP8")
    accuracy = measure(checkpoint, folder, str(tmp_path / "ids.safetensors"), 4, 24)
    assert accuracy.kl < (1e-4 if algorithm == "W4A16_AWQ" else 0.05)  # whose inputs nobody rounds


def test_they_are_requantized(folder: Path, tmp_path: Path, converted: Converted) -> None:
    checkpoint = converted(folder, quant="W8A16", requantize=True)
    assert measure(checkpoint, folder, str(tmp_path / "ids.safetensors"), 4, 24).kl < 0.01
    plain = converted(folder, requantize=True, dtype="bfloat16")
    assert plain.precision.base.name is None


@pytest.mark.parametrize("part", ["weights", "input_activations"])
def test_zero_points_that_no_engine_subtracts_are_refused(part: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "scaled" / "compressed-w8a8-static", tmp_path / "hf"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"][part]["symmetric"] = False
    (folder / "config.json").write_text(json.dumps(config))
    held = load_file(folder / "model.safetensors")
    scales = [name for name in held if name.endswith(".weight_scale" if part == "weights" else ".input_scale")]
    zeros = {name.replace("_scale", "_zero_point"): torch.full(held[name].shape, 3).to(torch.int8) for name in scales}
    save_file(held | zeros, folder / "model.safetensors")
    words = ["--model_dir", folder, "--output_dir", tmp_path / "out"]
    said = run("convert", *words, expect=2).stderr
    assert "config.json: compressed-tensors int-quantized weights cannot be kept as they are; give --requantize" in said
    assert said == run("convert", *words, "--quant", "W8A16", expect=2).stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["compressed-w8a8-static", "compressed-fp8-static-kv", "modelopt-fp8-kv"])
def test_inputs_of_fused_linears_that_are_scaled_differently_are_refused(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "scaled" / name, tmp_path / "hf"))
    change(folder, input_scale=2 * load_file(folder / "model.safetensors")[f"{PLACE}.input_scale"])
    said = run("convert", "--model_dir", folder, "--output_dir", tmp_path / "out", expect=2).stderr
    words = "layer 0: self_attn.q_proj and self_attn.k_proj read one input, but scale it differently; they cannot be fu"
    assert words in said
    assert "give --requantize" in said
    assert not (tmp_path / "out").exists()


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    held = load_file(folder / "model.safetensors")
    for suffix, tensor in tensors.items():
        held.pop(f"{PLACE}.{suffix}", None)
        if tensor is not None:
            held[f"{PLACE}.{suffix}"] = tensor
    save_file(held, folder / "model.safetensors")


def read(folder: Path) -> dict[str, torch.Tensor]:
    source = Source(folder)
    source.check_ready_made()
    return source.layer(0)


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"weight_scale": None}, f"tensor {PLACE}.weight_scale missing"),
        ({"weight_scale": torch.tensor(-1.0)}, f"{PLACE}.weight_scale: holds negative scales"),
        ({"weight_scale": torch.tensor(float("inf"))}, "holds NaN or Inf"),
        ({"weight_scale": torch.ones(7)}, f"{PLACE}.weight_scale has shape [7]"),
        ({"weight": torch.ones(64, 128).to(torch.float8_e5m2)}, f"{PLACE}.weight is F8_E5M2; only"),
        ({"weight": torch.full((64, 128), float("nan")).to(torch.float8_e4m3fn)}, "holds NaN or Inf"),
        ({"weight_zero_point": torch.ones(1, dtype=torch.int8)}, "holds zero points, but config.json says that th"),
        ({"more": torch.ones(1)}, "is not part of LlamaForCausalLM"),
    ],
)
def test_tensors_that_do_not_fit(tensors: dict[str, torch.Tensor | None], words: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "scaled" / "compressed-fp8-static-kv", tmp_path / "hf"))
    change(folder, **tensors)
    assert words in refused(folder)


def test_zero_points_that_are_stated_are_subtracted(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "scaled" / "compressed-w8a8-static", tmp_path / "hf"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = False
    (folder / "config.json").write_text(json.dumps(config))
    assert "weight_zero_point and 6 more missing" in refused(folder)
    held = load_file(folder / "model.safetensors")
    scales = [name for name in held if name.endswith(".weight_scale")]
    zeros = {name.replace("_scale", "_zero_point"): torch.full(held[name].shape, 3).to(torch.int8) for name in scales}
    save_file(held | zeros, folder / "model.safetensors")
    expected = (held[f"{PLACE}.weight"].float() - 3) * held[f"{PLACE}.weight_scale"].float()
    assert torch.equal(Source(folder).dequantized(PLACE), expected)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("compressed-w8a8-static", {"strategy": "tensor"}, "weight_scale has shape [128, 1], config.json implies [1]"),
        ("compressed-fp8-static-kv", {"strategy": "channel"}, "config.json implies [128, 1]"),
        ("compressed-w8a8-static", {"group_size": 64}, "strategy channel and group_size 64 contradict each other"),
        ("compressed-fp8-static-kv", {"group_size": 64}, "strategy tensor and group_size 64 contradict each other"),
    ],
)
def test_scales_are_as_the_strategy_says(name: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "scaled" / name, tmp_path / "hf"))
    assert Source(folder).ready is not None
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    assert words in refused(folder)


def test_an_algorithm_of_modelopts_that_is_not_known(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "scaled" / "modelopt-int4-awq-g128", tmp_path / "hf"))
    for name, path in (("quantization", "hf_quant_config.json"), ("quantization_config", "config.json")):
        said = json.loads((folder / path).read_text())
        said.get(name, {})["quant_algo"] = "W4A4"
        (folder / path).write_text(json.dumps(said))
    assert "hf_quant_config.json: quant_algo 'W4A4' cannot be repacked: " in refused(folder)


def test_factors_that_are_said_not_to_be_there(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "scaled" / "modelopt-int4-awq-g128", tmp_path / "hf"))
    said = json.loads((folder / "hf_quant_config.json").read_text())
    said["quantization"]["pre_quant_scale"] = False
    (folder / "hf_quant_config.json").write_text(json.dumps(said))
    assert ".pre_quant_scale is not part of" in refused(folder)


@pytest.mark.parametrize(
    ("linear", "factors", "words"),
    [
        (
            "q_proj",
            torch.ones(128),
            "k_proj.pre_quant_scale is missing, though model.layers.0.self_attn.q_proj has one",
        ),
        ("o_proj", -torch.ones(128), "holds factors that are not positive"),
    ],
    ids=["only one of three", "negative"],
)
def test_factors_are_positive_and_shared_by_who_reads_one_input(
    linear: str, factors: torch.Tensor, words: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(DATA / "scaled" / "modelopt-int4-awq-g128", tmp_path / "hf"))
    tensors = load_file(folder / "model.safetensors")
    tensors[f"model.layers.0.self_attn.{linear}.pre_quant_scale"] = factors
    save_file(tensors, folder / "model.safetensors")
    assert words in refused(folder)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("hf_quant_config.json", {"quant_algo": "NVFP4"}, "describe different quantizations"),
        ("config.json", {"quant_algo": "W8A16"}, "describe different quantizations"),
        (
            "hf_quant_config.json",
            {"exclude_modules": ["lm_head", "*.q_proj"]},
            "exclude_modules leaves model.layers.0.s",
        ),
        ("hf_quant_config.json", {"exclude_modules": ["model.layers.0"]}, "exclude_modules leaves model.layers.0.self"),
        ("hf_quant_config.json", {"exclude_modules": "lm_head"}, "exclude_modules must be a list of texts"),
        ("hf_quant_config.json", {"has_zero_point": True}, "has_zero_point True"),
        ("hf_quant_config.json", {"quantized_layers": {"a": 1}}, "unknown key 'quantized_layers'"),
    ],
)
def test_what_modelopt_may_not_say(name: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "scaled" / "modelopt-fp8-kv", tmp_path / "hf"))
    content = json.loads((folder / name).read_text())
    content["quantization" if name.startswith("hf") else "quantization_config"].update(changes)
    (folder / name).write_text(json.dumps(content))
    assert words in refused(folder)


def test_modelopts_file_alone_and_its_copy_alone(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "scaled" / "modelopt-int4-awq-g128", tmp_path / "hf"))
    whole = Source(folder).layer(0)
    said = (folder / "hf_quant_config.json").read_text()
    (folder / "hf_quant_config.json").unlink()
    assert "hf_quant_config.json must be there too" in refused(folder)
    (folder / "hf_quant_config.json").write_text(said)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in Source(folder).layer(0).items())


@pytest.mark.parametrize("packing", ["auto_round:auto_gptq", "auto_round:gptq", None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_auto_rounds_gptq(packing: str | None, symmetric: bool, tmp_path: Path, converted: Converted) -> None:
    folder = Folder(tmp_path / "hf", "gptq", symmetric=symmetric, num_hidden_layers=2)
    folder.said = {
        "quant_method": "auto-round", "packing_format": packing, "bits": 4, "group_size": 64, "sym": symmetric,
        "data_type": "int", "iters": 200, "autoround_version": "0.5", "lr": 0.005, "extra_config": {},
    }  # fmt: skip
    folder.say()
    with pytest.raises(InputError, match=r"auto-round weights cannot be kept as they are; give --requantize"):
        converted(folder.path)
    checkpoint = converted(folder.path, requantize=True)
    expected = folder.linears["model.layers.1.mlp.down_proj"].dequantized()
    assert torch.equal(checkpoint.layer(1)["mlp.proj.weight"], expected.half())


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"packing_format": "auto_round:auto_awq"}, "packing_format 'auto_round:auto_awq' cannot be repacked"),
        ({"packing_format": 1}, "packing_format must be a text"),
        ({"extra_config": {PART: {"bits": 8}}}, "quantize every linear with the same bits"),
        ({"extra_config": {PART: {"bits": 16}}}, f"extra_config leaves {PART} in floating point"),
        ({"act_bits": 8}, "act_bits 8 cannot be repacked: only weights may be quantized"),
        ({"data_type": "mx_fp"}, "data_type 'mx_fp'"),
        ({"rotation_config": {"a": 1}}, "unknown key 'rotation_config'"),
    ],
)
def test_what_auto_round_may_not_say(said: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf", "gptq")
    folder.said = {"quant_method": "auto-round", "bits": 4, "group_size": 64, "sym": False}
    folder.say(**said)
    assert words in refused(folder.path)
