"""Quantized folders as sources: what other tools rounded becomes a checkpoint with the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.prove.folder import QuantizedFolder
from enginesmith.convert.prove.layers import computed
from enginesmith.convert.prove.proven import ProvenCheckpoint, opened
from enginesmith.convert.prove.verify import structure_problems
from enginesmith.convert.targets.trtllm.formats.base import Activation

from .command import run
from .target_folders import BASE, IDS, TARGETS, made

CPU = torch.device("cpu")
KEPT = {
    "compressed/w8a8_dynamic_smoothquant": "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
    "compressed/w8a8_static": "W8A8_SQ_PER_CHANNEL",
    "compressed/fp8_dynamic": "FP8_PER_CHANNEL_PER_TOKEN",
    "compressed/fp8_static": "FP8",
    "modelopt/fp8": "FP8",
    "modelopt/fp8_pc_pt": "FP8_PER_CHANNEL_PER_TOKEN",
    "modelopt/int4_awq_g128": "W4A16_AWQ",
    "modelopt/int8_sq": "W8A8_SQ_PER_CHANNEL",
    "modelopt/int8_wo": "W8A16",
    "gptq_sym_g128": "W4A16_GPTQ",
    "compressed/w4a16_g64_asym": "W4A16_GPTQ",
}
FUSED = {"attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
         "attention.dense": ("self_attn.o_proj",), "mlp.fc": ("mlp.gate_proj",), "mlp.gate": ("mlp.up_proj",),
         "mlp.proj": ("mlp.down_proj",)}  # fmt: skip


def hidden(of: QuantizedFolder | ProvenCheckpoint) -> torch.Tensor:
    ids = IDS["token_ids"].long()
    runtime, x = of.runtime(ids.shape[1], CPU), of.embedding()(ids)
    for index in range(of.model.num_hidden_layers):
        x = computed(runtime, index, of.executed(index, CPU), x)
    return x.float()


@pytest.mark.parametrize("name", KEPT)
def test_integers_are_kept_to_the_bit(name: str, tmp_path: Path) -> None:
    """Every value is where the folder had it, and the engine computes what the folder's readers do."""
    convert(ConvertOptions(str(TARGETS / name), str(tmp_path / "out")))
    checkpoint, folder = ProvenCheckpoint(tmp_path / "out"), QuantizedFolder(TARGETS / name)
    assert checkpoint.quant == KEPT[name]
    assert structure_problems(checkpoint) == []
    manifest = json.loads((tmp_path / "out" / "enginesmith.json").read_text())
    for index in range(2):
        ours, again = checkpoint.layer(index), str(manifest["layers"][index]) if manifest["layers"] else ""
        theirs = folder.source.quantized_layer(index)
        for linear, parts in FUSED.items():
            values = torch.cat([theirs[part].values.view(torch.int8) for part in parts])
            changed = [part for part in parts if part in again]
            assert torch.equal(ours[f"{linear}.weight"].view(torch.int8), values) == (not changed)
        for group in checkpoint.model.family.groups:
            for linear in group.linears:
                engine, theirs = checkpoint.executed(index, CPU), folder.executed(index, CPU)
                wanted = theirs.product(linear, Activation(x := drawn(ours[f"{linear}.weight"].shape[1])))
                divisor = engine.divisor(linear)
                got = engine.product(linear, engine.rounding(group).of(x, divisor))
                assert (got - wanted).norm() < (0.03 if "FP8" in KEPT[name] else 0.01) * wanted.norm(), linear


def drawn(size: int) -> torch.Tensor:
    """Inputs of a linear, [tokens, in]."""
    return torch.randn(16, size, generator=torch.Generator().manual_seed(size)).half()


def test_fp8_matrices_with_scales_of_their_own_are_said(tmp_path: Path) -> None:
    """An engine's q, k and v have one scale: that of the widest stays as it is, the others are rounded to it."""
    told = run("convert", "--model_dir", TARGETS / "modelopt/fp8", "--output_dir", tmp_path / "out").stderr
    assert "2 layers hold FP8 matrices with scales of their own that an engine fuses" in told
    layers = json.loads((tmp_path / "out" / "enginesmith.json").read_text())["layers"]
    held = load_file(TARGETS / "modelopt/fp8" / "model.safetensors")
    for index, layer in enumerate(layers):
        scales = {part: float(held[f"model.layers.{index}.{part}.weight_scale"]) for part in FUSED["attention.qkv"]}
        widest = max(scales, key=lambda part: scales[part])
        assert sorted(layer["attention.qkv"]["rounded_again"]) == sorted(scales.keys() - {widest})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("compressed/w8a8_dynamic_asym", "cannot be kept as they are; give --requantize"),
        ("modelopt/int4_awq_g128", "which W4A16_AWQ does not hold; give --requantize"),
        ("modelopt/int8_sq", "which W8A8_SQ_PER_CHANNEL does not hold; give --requantize"),
    ],
)
def test_what_would_be_lost_is_refused(name: str, words: str, tmp_path: Path) -> None:
    """A pre_quant_scale has no place in compressed-tensors; asymmetric activations none in an engine."""
    target = "trtllm" if "asym" in name else "compressed-tensors"
    with pytest.raises(InputError) as refused:
        convert(ConvertOptions(str(TARGETS / name), str(tmp_path / "out"), target=(target,)))
    assert words in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["modelopt", "edge"])
def test_an_awq_folder_becomes_another(target: str, tmp_path: Path) -> None:
    convert(ConvertOptions(str(TARGETS / "modelopt/int4_awq_g128"), str(tmp_path / "out"), target=(target,)))
    ours, theirs = (
        load_file(tmp_path / "out" / "model.safetensors"),
        load_file(TARGETS / "modelopt/int4_awq_g128/model.safetensors"),
    )
    for name, tensor in theirs.items():
        if name.endswith((".weight", "pre_quant_scale")):
            assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize(
    ("target", "quant"),
    [("edge", "W8A8_SQ_PER_CHANNEL"), ("compressed-tensors", "W8A8"), ("modelopt", "FP8"), ("modelopt", "W4A16_AWQ")],
)
def test_our_folders_are_verified_as_they_are(target: str, quant: str, tmp_path: Path) -> None:
    folder, text = made(target, quant, tmp_path / "made"), TARGETS / "ids.safetensors"
    ids = tmp_path / "ids.safetensors"
    save_file({"input_ids": load_file(text)["token_ids"].long()}, ids)
    words = ("verify", folder, "--reference", BASE, "--text", ids, "--chunks", 2, "--seq_len", 48, "--json")
    told = json.loads(run(*words).stdout)
    assert told["ok"]
    assert 0 < told["accuracy"]["mean_kl"] < (0.6 if quant == "W4A16_AWQ" else 0.2)
    manifest = json.loads((folder / "enginesmith.json").read_text())
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json" in manifest["files"]
    told = json.loads(run(*words, expect=1).stdout)
    assert told["failures"] == ["tokenizer.json: differs from the one enginesmith.json recorded"]


def test_a_mixture_is_written_and_read(tmp_path: Path) -> None:
    folder = made("modelopt", "FP8", tmp_path / "made", quant_layer=("*down_proj=W4A16_AWQ",), exclude=("*.0.*o_proj",))
    read = opened(folder)
    assert read.quant == "modelopt MIXED_PRECISION"
    assert read.problems() == []
    assert bool(torch.isfinite(hidden(read)).all())
    said = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    kinds = {name.rpartition(".")[2]: entry["quant_algo"] for name, entry in said["quantized_layers"].items()}
    assert kinds["down_proj"] == "W4A16_AWQ"
    assert kinds["q_proj"] == "FP8"
    assert "model.layers.0.self_attn.o_proj" in said["exclude_modules"]
    del said["quantized_layers"]["model.layers.1.mlp.down_proj"]
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": said}))
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.down_proj"):
        opened(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.layers.1.mlp.down_proj.input_scale": torch.tensor(0.0)}, "down_proj.input_scale: 0 is no scale"),
        ({"model.layers.1.mlp.down_proj.input_scale": None}, "down_proj.input_scale missing"),
        ({"model.layers.1.mlp.down_proj.pre_quant_scale": -torch.ones(384).half()}, "factors that are not positive"),
    ],
)
def test_scales_that_no_reader_can_use(change: dict[str, torch.Tensor | None], words: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TARGETS / "modelopt/int8_sq", tmp_path / "hf"))
    held = load_file(folder / "model.safetensors")
    for name, tensor in change.items():
        held.pop(name)
        if tensor is not None:
            held[name] = tensor
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    told = run("verify", folder, expect=2 if "missing" in words else 1)
    assert words in told.stdout + told.stderr


def test_a_folder_in_floating_point_has_nothing_to_verify() -> None:
    assert "nothing to verify" in run("verify", BASE, expect=2).stderr
