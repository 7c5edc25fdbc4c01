"""What folders may not hold, and what lies beside a model: scales of 0, odd sizes, links, huge files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.prove.folder import QuantizedFolder
from enginesmith.convert.prove.proven import opened
from enginesmith.convert.targets.huggingface import config as beside

from .command import run
from .family_models import write_family
from .target_folders import BASE, IDS, TARGETS, logits, made

Change = Callable[[dict[str, torch.Tensor]], None]


def changed(folder: Path, of: Path, change: Change) -> Path:
    shutil.copytree(of, folder)
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    return folder


def scaled(suffix: str, by: float) -> Change:
    def change(held: dict[str, torch.Tensor]) -> None:
        for name in [name for name in held if name.endswith(suffix)]:
            held[name] = (held[name].float() * by).to(held[name].dtype)

    return change


DEAD = ("layers.0.self_attn.v_proj.weight", "layers.0.input_layernorm.weight", "layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize(
    ("target", "quant"),
    [
        ("compressed-tensors", "FP8"),
        ("compressed-tensors", "W8A8_SQ_PER_CHANNEL"),
        ("modelopt", "FP8"),
        ("edge", "FP8"),
    ],
)
def test_no_scale_is_0_where_nothing_ever_comes(target: str, quant: str, dead: str, tmp_path: Path) -> None:
    source = changed(tmp_path / "hf", BASE, scaled(dead, 0.0))
    folder = made(target, quant, tmp_path / "made", model_dir=str(source), kv_cache="FP8")
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith("scale"):
            assert bool((tensor.float() > 0).all()), name
    assert opened(folder).problems() == []


@pytest.mark.parametrize("options", [{"exclude": ("model.layers.0.self_attn*",)}, {}], ids=str)
@pytest.mark.parametrize(
    ("target", "quant"),
    [
        ("compressed-tensors", "W8A16"),
        ("compressed-tensors", "W4A16_AWQ"),
        ("compressed-tensors", "W8A8"),
        ("modelopt", "FP8"),
        ("edge", "FP8"),
    ],
)
def test_a_cache_beside_any_scheme_is_read_back(
    target: str, quant: str, options: dict[str, Any], tmp_path: Path
) -> None:
    folder = made(target, quant, tmp_path / "made", kv_cache="FP8", **options)
    read = QuantizedFolder(folder)
    assert read.kv_cache == "FP8"
    for index in range(2):
        scales = read.cache_scales(index, torch.device("cpu"))
        assert scales is not None
        assert 0 < float(scales.max()) < 0.5


def test_a_cache_without_quantized_weights_is_refused(tmp_path: Path) -> None:
    for target in ("compressed-tensors", "modelopt", "edge"):
        with pytest.raises(InputError, match="--kv_cache"):
            convert(ConvertOptions(str(BASE), str(tmp_path / "out"), target=(target,), kv_cache="FP8"))


ODD = {"hidden_size": 96, "intermediate_size": 100, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 12}


@pytest.mark.parametrize(
    ("quant", "options"), [("W4A16", {}), ("W8A16", {}), ("W4A16_GPTQ", {"exclude": ("*o_proj",)})]
)
def test_sizes_that_fill_no_word(quant: str, options: dict[str, Any], tmp_path: Path) -> None:
    """The last word of a row, and of zero points, is filled up; transformers and our reader cut it off again."""
    pytest.importorskip("compressed_tensors")
    sizes = ODD if quant != "W4A16_GPTQ" else {"hidden_size": 64, "intermediate_size": 128, "head_dim": 10}
    config = transformers.LlamaConfig(
        vocab_size=257, num_hidden_layers=2, **({"num_attention_heads": 4, "num_key_value_heads": 2} | sizes)
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "hf")
    options = {"group_size": 64} | options if quant == "W4A16_GPTQ" else options
    folder = made("compressed-tensors", quant, tmp_path / "made", model_dir=str(tmp_path / "hf"), **options)
    assert opened(folder).problems() == []
    if quant != "W4A16_GPTQ":
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.inference_mode():
            wanted = model(IDS["token_ids"].long()).logits
        assert float((logits(folder, "transformers") - wanted).abs().max()) < 1e-4


def test_factors_that_tensorrt_llm_does_not_read_are_refused(tmp_path: Path) -> None:
    """Its PyTorch backend reads pre_quant_scale in o_proj and down_proj; other families call them otherwise."""
    hf = write_family(tmp_path / "hf", "StarCoder2")
    options = {"model_dir": str(hf), "calib_seq_len": 24, "group_size": 64}
    with pytest.raises(InputError, match="reads factors of inputs in o_proj and down_proj alone"):
        made("modelopt", "W4A16_AWQ", tmp_path / "made", **options)
    assert not (tmp_path / "made" / "out").exists()


def link(folder: Path, name: str, to: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(to)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hf: link(hf, "chat_template.jinja", Path("/etc/hostname")), "is a link that leads out of the folder"),
        (lambda hf: link(hf, "generation_config.json", Path("nowhere")), "leads nowhere"),
        (lambda hf: os.mkfifo(hf / "merges.txt"), "not a regular file"),
        (lambda hf: (hf / "vocab.json").mkdir(), "not a regular file"),
        (lambda hf: os.truncate(hf / "tokenizer.json", beside.LARGEST_BESIDE + 1), "is larger than 256 MiB"),
    ],
    ids=["outside", "nowhere", "pipe", "folder", "huge"],
)
def test_what_lies_beside_is_looked_at_before_work(
    change: Callable[[Path], Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = Path(shutil.copytree(BASE, tmp_path / "hf"))
    change(hf)
    monkeypatch.setattr("enginesmith.convert.job.conversion.convert_job", pytest.fail)
    with pytest.raises(InputError) as refused:
        convert(ConvertOptions(str(hf), str(tmp_path / "out"), target=("compressed-tensors",), quant="W8A16"))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model", "tokens.tiktoken", "vocab.txt"])
def test_every_kind_of_tokenizer_comes_along(name: str, tmp_path: Path) -> None:
    source = changed(tmp_path / "hf", BASE, scaled("lm_head.weight", 1.0))
    (source / name).write_bytes(b"tokens")
    folder = made("compressed-tensors", "W8A16", tmp_path / "made", model_dir=str(source))
    assert (folder / name).read_bytes() == b"tokens"


def test_a_hubs_cache_is_copied(tmp_path: Path) -> None:
    """Its snapshots are links to blobs beside them."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    shutil.copytree(BASE, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    folder = made("compressed-tensors", "W8A16", tmp_path / "made", model_dir=str(snapshot))
    assert not (folder / "tokenizer.json").is_symlink()
    assert (folder / "tokenizer.json").read_bytes() == (BASE / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("modelopt/fp8", scaled("down_proj.weight_scale", 1e-4), "holds scales beyond float16's range"),
        ("modelopt/int4_awq_g128", scaled("pre_quant_scale", 1e-8), "pre_quant_scale"),
    ],
)
def test_kept_scales_that_edge_cannot_hold_are_refused(name: str, change: Change, words: str, tmp_path: Path) -> None:
    source = changed(tmp_path / "hf", TARGETS / name, change)
    with pytest.raises(InputError, match=words):
        convert(ConvertOptions(str(source), str(tmp_path / "out"), target=("edge",)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "file", "keys", "value", "words"),
    [
        ("modelopt/fp8", "hf_quant_config.json", ("quantization", "quant_algo"), ["FP8"], "quant_algo"),
        ("modelopt/fp8", "hf_quant_config.json", ("quantization", "kv_cache_quant_algo"), "NVFP4", "FP8 KV cache"),
        (
            "compressed/fp8_static_kv",
            "config.json",
            ("quantization_config", "kv_cache_scheme", "num_bits"),
            4,
            "FP8 KV",
        ),
    ],
)
def test_statements_that_are_not_executed(
    name: str, file: str, keys: tuple[str, ...], value: Any, words: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(TARGETS / name, tmp_path / "hf"))
    said = json.loads((folder / file).read_text())
    inner = said
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / file).write_text(json.dumps(said))
    if name == "modelopt/fp8" and keys[-1] == "quant_algo":
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"]["quant_algo"] = value
        (folder / "config.json").write_text(json.dumps(config))
    assert words in run("verify", folder, expect=2).stderr


def test_a_cache_that_is_not_taken_over_is_said(tmp_path: Path) -> None:
    words = ("convert", "--model_dir", TARGETS / "modelopt/fp8_kv", "--output_dir", tmp_path / "out")
    assert "the folder's quantized KV cache is not taken over; --kv_cache FP8" in run(*words).stderr


def test_zero_points_of_inputs_that_are_said_to_be_symmetric(tmp_path: Path) -> None:
    def change(held: dict[str, torch.Tensor]) -> None:
        held["model.layers.0.mlp.up_proj.input_zero_point"] = torch.tensor([40], dtype=torch.int8)

    folder = changed(tmp_path / "hf", TARGETS / "compressed/w8a8_static", change)
    for words in (("verify", folder), ("convert", "--model_dir", folder, "--output_dir", tmp_path / "out")):
        assert "input_zero_point is not 0, but config.json says symmetric" in run(*words, expect=2).stderr


def test_advice_that_a_target_can_follow(tmp_path: Path) -> None:
    source = changed(tmp_path / "hf", BASE, scaled("layers.1.mlp.down_proj.weight", 3e4))
    config = json.loads((source / "config.json").read_text()) | {"dtype": "bfloat16"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="use another --target"):
        made("edge", "FP8", tmp_path / "made", model_dir=str(source))


@pytest.mark.parametrize("folder", ["compressed/w8a8_static", "checkpoint"])
def test_a_reader_that_does_not_read_it(folder: str, tmp_path: Path) -> None:
    if folder == "checkpoint":
        convert(ConvertOptions(str(BASE), str(tmp_path / "out"), quant="W8A16"))
    path = tmp_path / "out" if folder == "checkpoint" else TARGETS / folder
    assert "--reader edge" in run("verify", path, "--reader", "edge", expect=2).stderr
