"""Which weights are the model's, in every state in which people have folders."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import measure, structure_problems
from enginesmith.convert.sources.folder import Source

from .conftest import TINY, random_weights, write_model
from .source_folders import EMBEDDING, HEAD, INDEX, SMALL, WHOLE, refused, say, shards

# Which files.


def test_the_whole_file_comes_before_an_index(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", **SMALL)
    shards(folder, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], index=True, seed=7)
    source = Source(folder)
    assert [path.name for path in source.paths()] == ["config.json", WHOLE]
    assert torch.equal(source.tensor(EMBEDDING), random_weights(TINY | SMALL)[EMBEDDING])
    assert any(INDEX in note for note in source.notes)


def test_transformers_takes_the_same_file(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_model(tmp_path / "hf", **SMALL)
    shards(folder, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], index=True, seed=7)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float16).state_dict()
    assert torch.equal(theirs[EMBEDDING], Source(folder).tensor(EMBEDDING))


def test_the_file_that_the_config_names(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", transformers_weights="other.safetensors", **SMALL)
    other = random_weights(TINY | SMALL, seed=3)
    save_file(other, folder / "other.safetensors")
    assert torch.equal(Source(folder).tensor(EMBEDDING), other[EMBEDDING])
    for name, words in (("../other.safetensors", "points outside"), ("none.safetensors", "is missing"), (1, "outside")):
        say(folder, transformers_weights=name)
        assert words in refused(folder)


@pytest.mark.parametrize("count", [1, 3])
def test_all_shards_without_an_index_are_the_model(count: int, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", **SMALL)
    (folder / WHOLE).unlink()
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    weights = shards(folder, names)
    (folder / "consolidated.safetensors").write_bytes(b"another format")
    source = Source(folder)
    assert torch.equal(source.tensor(HEAD), weights[HEAD])
    assert source.notes == [f"{INDEX} is not there; all {count} shards are read"]
    if count > 1:
        (folder / names[1]).unlink()
        assert f"{names[1]} missing, and no {INDEX}" in refused(folder)


def test_a_tensor_that_two_shards_hold(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", **SMALL)
    shutil.copy(folder / WHOLE, folder / "model-00001-of-00002.safetensors")
    (folder / WHOLE).rename(folder / "model-00002-of-00002.safetensors")
    assert " is also in model-00001-of-00002.safetensors" in refused(folder)


def test_files_that_could_each_be_meant(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", **SMALL)
    (folder / WHOLE).rename(folder / "weights.safetensors")
    assert Source(folder).notes == ["weights.safetensors is read: it is the folder's only file of weights"]
    shutil.copy(folder / "weights.safetensors", folder / "copy.safetensors")
    assert "several files could be meant (copy.safetensors, weights.safetensors)" in refused(folder)


STATES = {
    "an adapter": (["adapter_config.json", "adapter_model.safetensors"], "LoRA adapter, not a model; merge it into"),
    "GGUF": (["model-q4.gguf"], "holds GGUF files"),
    "the authors' files": (["consolidated.safetensors", "params.json"], "its authors' own format"),
    "the authors' pickles": (["consolidated.00.pth"], "its authors' own format"),
    "pickles": (["pytorch_model.bin"], "only pickled weights found"),
    "another framework": (["tf_model.h5"], "only pickled weights found"),
    "training": (["optimizer.pt", "optimizer.safetensors"], "only pickled weights found"),
    "nothing": ([], f"no {WHOLE} or {INDEX}"),
}


@pytest.mark.parametrize("state", STATES)
def test_a_folder_without_weights_is_told_its_state(state: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", **SMALL)
    (folder / WHOLE).unlink()
    names, words = STATES[state]
    for name in names:
        (folder / name).write_bytes(b"x")
    assert words in refused(folder)
    (folder / "config.json").unlink()
    assert words in refused(folder)
    assert "no config.json" in refused(folder)


def test_a_download_cache_is_told(tmp_path: Path) -> None:
    (tmp_path / "hf" / "snapshots" / "abc").mkdir(parents=True)
    assert "give the folder inside its snapshots" in refused(tmp_path / "hf")


def test_pointers_instead_of_files(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", **SMALL)
    for name in (WHOLE, "config.json"):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        assert f"{name}: a pointer that git left for the file, not the file; run git lfs pull" in refused(folder)


def test_a_web_page_instead_of_a_file(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", **SMALL)
    for name in (WHOLE, "config.json"):
        (folder / name).write_text("\n<!DOCTYPE html><html>404</html>")
        assert f"{name}: a web page that was saved in the file's place" in refused(folder)


def test_an_adapter_beside_the_model_is_not_passed_over(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", **SMALL)
    (folder / "adapter_config.json").write_text("{}")
    assert not Source(folder).notes  # without its weights it is a leftover, and transformers has nothing to load
    save_file({"x": torch.zeros(2)}, folder / "adapter_model.safetensors")
    assert "holds a LoRA adapter beside the model, which transformers loads too; merge it" in refused(folder)


# Which tensors.


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "language_model.", "a.b.c."])
def test_one_prefix_before_all_names(prefix: str, tmp_path: Path, converted: Callable[..., Checkpoint]) -> None:
    weights = random_weights(TINY | SMALL)
    plain = converted(write_model(tmp_path / "a" / "hf", weights, **SMALL))
    named = {prefix + name: tensor for name, tensor in weights.items()}
    checkpoint = converted(write_model(tmp_path / "b" / "hf", named, **SMALL))
    assert checkpoint.rank_file(0).read_bytes() == plain.rank_file(0).read_bytes()
    manifest = json.loads((checkpoint.folder / "enginesmith.json").read_text())
    assert manifest["stripped_prefix"] == prefix
    assert json.loads((plain.folder / "enginesmith.json").read_text())["stripped_prefix"] is None


def test_a_prefix_before_some_names_is_refused(tmp_path: Path) -> None:
    weights = random_weights(TINY | SMALL)
    named = {name if name == HEAD else f"module.{name}": tensor for name, tensor in weights.items()}
    message = refused(write_model(tmp_path / "hf", named, **SMALL))
    assert "is not part of LlamaForCausalLM" in message
    assert "module." in message
    assert "its name has a prefix that not all names have" in message


@pytest.mark.parametrize("tied", [True, False])
def test_names_of_the_model_without_its_head(tied: bool, tmp_path: Path, converted: Callable[..., Checkpoint]) -> None:
    """As AutoModel saves them; transformers adds the prefix, and so is the checkpoint the same."""
    changes: dict[str, Any] = {**SMALL, "tie_word_embeddings": tied}
    weights = random_weights(TINY | changes)
    plain = converted(write_model(tmp_path / "a" / "hf", weights, **changes))
    named = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    checkpoint = converted(write_model(tmp_path / "b" / "hf", named, **changes))
    assert checkpoint.rank_file(0).read_bytes() == plain.rank_file(0).read_bytes()
    notes = json.loads((checkpoint.folder / "enginesmith.json").read_text())["source_notes"]
    assert "names of tensors lack 'model.', which is added as transformers does" in notes


FOREIGN = {
    "model.layers.0.self_attn.q_proj.lora_A.weight": "merge_and_unload",
    "model.layers.0.self_attn.q_proj.base_layer.weight": "merge_and_unload",
    "model.layers.0.mlp.up_proj.weight.absmax": "bitsandbytes",
    "model.layers.0.mlp.up_proj.weight_scale_inv": "FP8 by blocks",
    "model.layers.0.mlp.up_proj.qweight": "no configuration says so",
    "vision_tower.patch.weight": "multimodal",
    "layers.0.attention.wq.weight": "authors' own name",
    "model.layers.0.self_attn.q_norm.weight": "config.json does not declare",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_tensor_is_told_what_it_is(name: str, tmp_path: Path) -> None:
    weights = random_weights(TINY | SMALL) | {name: torch.zeros(4)}
    assert FOREIGN[name] in refused(write_model(tmp_path / "hf", weights, **SMALL))


def test_hostile_names_are_printable(tmp_path: Path) -> None:
    weights = random_weights(TINY | SMALL) | {"\x1b[2J" + "a" * 100_000: torch.zeros(4)}
    assert refused(write_model(tmp_path / "hf", weights, **SMALL)).isprintable()


@pytest.mark.parametrize("state", ["equal", "different", "only the head", "only the embedding"])
def test_tied_embeddings_are_what_transformers_makes_of_them(state: str, tmp_path: Path) -> None:
    weights = random_weights(TINY | SMALL)
    if state == "equal":
        weights[HEAD] = weights[EMBEDDING].clone()
    if state.startswith("only"):
        del weights[EMBEDDING if state == "only the head" else HEAD]
    folder = write_model(tmp_path / "hf", weights, tie_word_embeddings=True, **SMALL)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float16)
    source = Source(folder)
    assert torch.equal(source.tensor(EMBEDDING), theirs.model.embed_tokens.weight)
    assert torch.equal(source.head().weight, theirs.lm_head.weight)
    assert bool(source.notes) == (state in ("different", "only the head"))


def test_a_tied_head_of_no_size_is_refused(tmp_path: Path) -> None:
    weights = random_weights(TINY | SMALL) | {HEAD: torch.tensor(1.0), EMBEDDING: torch.tensor(2.0)}
    message = refused(write_model(tmp_path / "hf", weights, tie_word_embeddings=True, **SMALL))
    assert "has shape [], config.json implies [101, 64]" in message


def test_a_path_that_is_not_utf_8(tmp_path: Path, converted: Callable[..., Checkpoint]) -> None:
    folder = write_model(tmp_path / os.fsdecode(b"caf\xe9") / "hf", **SMALL)
    assert structure_problems(converted(folder)) == []
    (folder / WHOLE).rename(folder / os.fsdecode(b"\xe9.safetensors"))
    assert converted(folder).layer(0)
    (folder / os.fsdecode(b"\xe9.safetensors")).write_bytes(b"")
    assert refused(folder).isprintable()


def test_an_untied_head_must_be_there(tmp_path: Path) -> None:
    weights = random_weights(TINY | SMALL)
    del weights[HEAD]
    assert f"tensor {HEAD} missing" in refused(write_model(tmp_path / "hf", weights, **SMALL))


@pytest.mark.parametrize("key", ["attention_bias", "bias"])
def test_attention_biases_without_o_projs(key: str, tmp_path: Path, converted: Callable[..., Checkpoint]) -> None:
    weights = random_weights(TINY | {"attention_bias": True})
    for name in [name for name in weights if name.endswith("o_proj.bias")]:
        del weights[name]
    folder = write_model(tmp_path / "hf", weights, **{key: True})
    checkpoint = converted(folder)
    assert (checkpoint.layer(3)["attention.dense.bias"] == 0).all()
    assert checkpoint.layer(3)["attention.qkv.bias"].any()
    assert structure_problems(checkpoint) == []
    assert measure(checkpoint, folder, str(tmp_path / "ids.safetensors"), 4, 24).kl < 0.01
    notes = json.loads((checkpoint.folder / "enginesmith.json").read_text())["source_notes"]
    assert notes == ["self_attn.o_proj: config.json declares biases, and none are there: they are 0"]
    del weights["model.layers.2.self_attn.v_proj.bias"]
    save_file(weights, folder / WHOLE)
    assert "tensor model.layers.2.self_attn.v_proj.bias missing" in refused(folder)


def test_biases_that_only_a_spelling_declares(tmp_path: Path) -> None:
    """The key "bias" says nothing where no file holds one; attention_bias does."""
    folder = write_model(tmp_path / "hf", random_weights(TINY | SMALL), bias=True, **SMALL)
    assert not Source(folder).model.attn_bias
    say(folder, attention_bias=True)
    assert "self_attn.q_proj.bias" in refused(folder)
    say(folder, attention_bias=False)
    assert not Source(folder).model.attn_bias


# Leftovers of a quantization.


@pytest.mark.parametrize(
    "said", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "gptq", "bits": 3}, {"x": 1}]
)
def test_a_quantization_of_float_weights_is_a_leftover(
    said: dict[str, Any], tmp_path: Path, converted: Callable[..., Checkpoint]
) -> None:
    plain = converted(write_model(tmp_path / "a" / "hf", **SMALL))
    folder = write_model(tmp_path / "b" / "hf", quantization_config=said, **SMALL)
    (folder / "quantize_config.json").write_text("{}")
    checkpoint = converted(folder)
    assert checkpoint.rank_file(0).read_bytes() == plain.rank_file(0).read_bytes()
    notes = json.loads((checkpoint.folder / "enginesmith.json").read_text())["source_notes"]
    assert notes == ["quantization_config is not used: every weight is in floating point"]


def test_transforms_are_no_leftover(tmp_path: Path) -> None:
    said = {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {}}}}
    assert "transform_config" in refused(write_model(tmp_path / "hf", quantization_config=said, **SMALL))


def test_quantized_weights_are_no_leftover(tmp_path: Path) -> None:
    weights = random_weights(TINY | SMALL)
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(96 * 32, 1, dtype=torch.uint8)
    folder = write_model(tmp_path / "hf", weights, quantization_config={"quant_method": "bitsandbytes"}, **SMALL)
    assert "already quantized ('bitsandbytes')" in refused(folder)
