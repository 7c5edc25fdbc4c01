"""Which weights are the model's, in every state in which people have folders; and that they stay the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.files.disk import write_json
from enginesmith.convert.job import conversion as converter
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.prove.verify import measure, structure_problems
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.targets.trtllm.checkpoint import Checkpoint

from .command import run
from .conftest import TINY, random_weights, write_model

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SMALL: dict[str, Any] = {"num_hidden_layers": 1}


def say(folder: Path, **changes: Any) -> None:
    """Change config.json; None takes a key out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        Source(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def shards(folder: Path, names: list[str], index: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """Spread a model with another seed over shards of these names; returns its weights."""
    weights = random_weights(TINY | SMALL, seed)
    where = {name: names[i % len(names)] for i, name in enumerate(sorted(weights))}
    for shard in names:
        save_file({name: weights[name] for name in where if where[name] == shard}, folder / shard)
    if index:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return weights


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


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """transformers' own, in float32."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        found: torch.Tensor = model(ids).logits
    return found


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
    assert torch.equal(source.head(), theirs.lm_head.weight)
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


# A source, or a result, that changes meanwhile.


def at_layer(index: int, act: Callable[[], None]) -> Callable[[int, str, int], None]:
    """Something that happens once, when a layer begins to be read."""
    left = [act]

    def on_progress(layer: int, phase: str, tokens: int) -> None:
        if layer == index and phase == "read" and left:
            left.pop()()

    return on_progress


def another_model(path: Path) -> None:
    """In place: the same size, other numbers."""
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(os.urandom(100))


def rename_over(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def moved_away(path: Path) -> None:
    """Its inode keeps a name, elsewhere, and a copy takes its place."""
    content = path.read_bytes()
    path.rename(path.parent.parent / "moved")
    path.write_bytes(content)


CHANGES = {
    "written to": another_model,
    "renamed over": rename_over,
    "cut": cut,
    "removed": Path.unlink,
    "moved away": moved_away,
}


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "moved")


@pytest.mark.parametrize("name", [WHOLE, "config.json"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_becomes_no_checkpoint(change: str, name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf")
    options = ConvertOptions(str(folder), str(tmp_path / "out"))
    with pytest.raises(InputError, match=rf"{name}: (was|changed) .*while it was read; start again"):
        convert(options, at_layer(2, lambda: CHANGES[change](folder / name)))
    assert left_in(tmp_path) == ["hf", "ids.safetensors"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_at_the_very_end_becomes_no_checkpoint(change: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf")

    def on_progress(layer: int, phase: str, tokens: int) -> None:
        if phase == "hash":
            CHANGES[change](folder / "config.json")

    with pytest.raises(InputError, match=r"config\.json: .*while it was read; start again"):
        convert(ConvertOptions(str(folder), str(tmp_path / "out")), on_progress)
    assert left_in(tmp_path) == ["hf", "ids.safetensors"]


@pytest.mark.parametrize("name", [WHOLE, "config.json"])
def test_a_source_that_changes_leaves_no_statistics(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf")
    calibration = {"calib": str(tmp_path / "ids.safetensors"), "calib_size": 8, "calib_seq_len": 24}
    options = ConvertOptions(str(folder), str(tmp_path / "out"), save_stats=str(tmp_path / "st"), **calibration)
    with pytest.raises(InputError, match="while it was read"):
        convert(options, at_layer(3, lambda: rename_over(folder / name)))
    assert left_in(tmp_path) == ["hf", "ids.safetensors"]


@pytest.mark.parametrize(
    ("phase", "change"),
    # What another writes into a file that is itself being written shows in no time stamp.
    [("hash", change) for change in CHANGES] + [("read", change) for change in CHANGES if change != "written to"],
)
def test_a_result_that_changes_is_no_checkpoint(phase: str, change: str, tmp_path: Path) -> None:
    folder, seen = write_model(tmp_path / "hf"), list[tuple[int, str]]()

    def on_progress(layer: int, now: str, tokens: int) -> None:
        if now == phase and (phase == "hash" or not layer):
            CHANGES[change](tmp_path / ".out.partial" / "out" / "rank0.safetensors")
        seen.append((layer, now))

    with pytest.raises(InputError, match=r"--output_dir: rank0\.safetensors: .* while it was \w+; start again"):
        convert(ConvertOptions(str(folder), str(tmp_path / "out")), on_progress)
    assert left_in(tmp_path) == ["hf", "ids.safetensors"]
    # What shows while it is written is not written to the end.
    assert ((1, "read") in seen) == (phase == "hash" or change == "moved away")


@pytest.mark.parametrize("change", CHANGES)
def test_a_result_that_changes_after_it_was_hashed_is_no_checkpoint(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, value: dict[str, Any]) -> None:
        write_json(path, value)
        if path.name == "enginesmith.json":
            CHANGES[change](path.with_name("rank0.safetensors"))

    monkeypatch.setattr(converter, "write_json", write)
    folder = write_model(tmp_path / "hf")
    with pytest.raises(InputError, match=r"--output_dir: rank0\.safetensors: .* while it was read; start again"):
        convert(ConvertOptions(str(folder), str(tmp_path / "out")))
    assert left_in(tmp_path) == ["hf", "ids.safetensors"]


def test_a_file_that_nobody_wrote_is_no_result(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf")
    with pytest.raises(InputError, match=r"rank7\.safetensors: was put there by someone else"):
        convert(
            ConvertOptions(str(folder), str(tmp_path / "out")),
            at_layer(1, lambda: (tmp_path / ".out.partial" / "out" / "rank7.safetensors").touch()),
        )
    assert not (tmp_path / "out").exists()


def test_each_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, opened, true_open = write_model(tmp_path / "hf"), list[str](), os.open

    def counting(path: Any, *args: Any, **named: Any) -> int:
        opened.append(os.fspath(path))
        return true_open(path, *args, **named)

    monkeypatch.setattr(os, "open", counting)
    source = Source(folder)
    for index in range(4):
        source.layer(index)
    assert [Path(path).name for path in opened if str(folder) in path] == ["config.json", WHOLE]


# What config.json says in its own way, or leaves to transformers.


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architectures": None}, {"architecture": "LlamaForCausalLM"}),
        ({"architectures": [], "model_type": "mistral"}, {"architecture": "MistralForCausalLM"}),
        ({"architectures": ["LLaMAForCausalLM"]}, {"architecture": "LlamaForCausalLM"}),
        ({"architectures": "LlamaForCausalLM"}, {"architecture": "LlamaForCausalLM"}),
        ({"max_position_embeddings": None}, {"max_position_embeddings": 2048}),
        ({"hidden_act": "swish"}, {"hidden_act": "silu"}),
        ({"sliding_window": 8}, {"sliding_window": None}),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 8}, {"sliding_window": 8}),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, {"sliding_window": None}),
        ({"architectures": ["MistralForCausalLM"]}, {"sliding_window": 4096}),
        ({"torch_dtype": None, "dtype": "torch.bfloat16"}, {"dtype": "torch.bfloat16"}),
    ],
)
def test_read_as_transformers_reads_it(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    model = read_model(TINY | changes)
    assert {name: getattr(model, name) for name in expected} == expected


def test_a_default_that_was_taken_is_noted(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", **SMALL)
    say(folder, max_position_embeddings=None)
    assert Source(folder).notes == ["max_position_embeddings 2048, transformers' default"]


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "MistralForCausalLM"])
def test_the_window_is_the_one_that_transformers_model_has(architecture: str, tmp_path: Path) -> None:
    """Beyond the window the logits change with what lies before it, or do not."""
    kind = architecture.removesuffix("ForCausalLM").lower()
    folder = write_model(
        tmp_path / "hf", architectures=[architecture], model_type=kind, sliding_window=4, torch_dtype="float32", **SMALL
    )
    ids = torch.randint(101, (1, 24), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 0] = (ids[0, 0] + 1) % 101
    sees = not torch.equal(logits(folder, ids)[0, -1], logits(folder, other)[0, -1])
    source = Source(folder)
    assert (source.model.sliding_window is None) == sees
    words = f"sliding_window is not used: attention of {architecture} has none"
    assert source.notes == ([words] if sees else [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["LlavaForConditionalGeneration"], "text_config": {}},
            "holds its text model in text_config",
        ),
        ({"architectures": None, "model_type": "phi9"}, "architecture 'phi9' is not supported"),
        ({"architectures": ["LlamaForCausalLM", "Other"]}, "is not supported"),
        ({"architectures": [["LlamaForCausalLM"]]}, "is not supported"),
        ({"architectures": {"a": 1}}, "is not supported"),
        ({"torch_dtype": {"": "float16"}}, "torch_dtype must be a text, not {'': 'float16'}"),
        ({"attention_bias": 1}, "attention_bias must be true or false"),
        ({"bias": "yes"}, "bias must be true or false"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": "4096"}, "sliding_window must be an integer"),
        ({"hidden_size": 66}, "hidden_size 66 is no multiple of num_attention_heads 4; state head_dim"),
        ({"head_dim": 15}, "head size 15 is odd; the rotary embedding needs pairs"),
        ({"head_dim": 0}, "head_dim must be an integer from 1"),
        ({"hidden_act": ["silu"]}, "hidden_act ['silu'] is not supported"),
        ({"quantization_config": "gptq"}, "quantization_config must be an object"),
        ({"quantization_config": 0}, "quantization_config must be an object"),
    ],
)
def test_what_a_config_may_not_say(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", **SMALL)
    say(folder, **changes)
    if changes.get("architectures", 1) is None:
        assert "architectures" not in json.loads((folder / "config.json").read_text())
    assert words in refused(folder)


# Attention heads of their own size.


def test_a_hidden_size_that_is_no_multiple_of_the_heads(tmp_path: Path) -> None:
    """Its heads, 3 of 16, are wider together than it is, as are 24 of 128 in 1792."""
    shape = {"hidden_size": 40, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16}
    shape |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_hidden_layers": 2}
    folder = write_model(tmp_path / "hf", **shape)
    ids, out = tmp_path / "ids.safetensors", tmp_path / "out"
    run("convert", "--model_dir", folder, "--output_dir", out, "--quant", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
        "--calib", ids, "--calib_seq_len", 24)  # fmt: skip
    run("verify", out, "--reference", folder, "--text", ids, "--chunks", 4, "--seq_len", 24)
    accuracy = measure(Checkpoint(out), folder, str(ids), 4, 24)
    assert accuracy.kl < 0.02
    tokens = load_file(ids)["input_ids"][:4]
    predicted = logits(folder, tokens)[:, :-1].flatten(0, 1)
    nll = torch.nn.functional.cross_entropy(predicted, tokens[:, 1:].flatten())
    assert abs(float(nll.exp()) - accuracy.reference_perplexity) < 1e-3 * accuracy.reference_perplexity
    say(folder, head_dim=None)
    assert "hidden_size 40 is no multiple of num_attention_heads 3; state head_dim" in refused(folder)
