"""Folders for other runtimes: their tensors and configurations, several from one pass, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.targets.registry import TARGETS as KINDS

from .command import run
from .target_folders import BASE, SAME, TARGETS, calibration, forms, made


@pytest.mark.parametrize(("target", "quant", "options"), SAME, ids=[" ".join(map(str, key)) for key in SAME])
def test_the_tensors_are_the_peers(
    target: str, quant: str, options: tuple[tuple[str, Any], ...], tmp_path: Path
) -> None:
    """Names, shapes and dtypes of the folder that llm-compressor or ModelOpt makes of the same model, and what its
    configuration says of how weights and inputs are quantized."""
    folder, peer = made(target, quant, tmp_path / "made", **dict(options)), TARGETS / SAME[target, quant, options]
    assert forms(folder) == forms(peer)
    ours, theirs = (said(one) for one in (folder, peer))
    assert {key: ours[key] for key in theirs} == theirs


def said(folder: Path) -> dict[str, Any]:
    """What a folder's configuration says, without what says how a tool went about it."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    beside = folder / "hf_quant_config.json"
    if beside.exists():
        inside = json.loads(beside.read_text())["quantization"]
        assert inside["quant_algo"] == config["quant_algo"]
        return inside | {"quant_method": config["quant_method"], "ignore": config["ignore"]}
    if "config_groups" not in config:
        return config
    (group,) = config["config_groups"].values()
    keys = ("num_bits", "type", "strategy", "symmetric", "dynamic", "group_size")
    flat = {key: config[key] for key in ("quant_method", "format", "quantization_status", "ignore")}
    for part in ("weights", "input_activations"):
        own = group[part] or {}
        flat |= {f"{part} {key}": own.get(key) for key in keys}
    cache = config["kv_cache_scheme"]
    return flat | {"kv": cache and [cache[key] for key in ("num_bits", "type", "strategy", "symmetric", "dynamic")]}


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (("trtllm", "edge", "compressed-tensors"), {"quant": "W8A8_SQ_PER_CHANNEL", "kv_cache": "FP8", "tp_size": 2}),
        (("edge", "trtllm", "compressed-tensors"), {"quant": "W4A16_GPTQ", "symmetric": True}),
        (("modelopt", "trtllm", "edge", "compressed-tensors"), {"quant": "W4A16_AWQ", "shard_size": 0.001}),
        (("trtllm", "compressed-tensors"), {"quant": "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN", "sm": 90}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value["quant"],
)
def test_several_targets_are_each_as_by_itself(
    targets: tuple[str, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    text = {"model_dir": str(BASE), "calib": str(calibration(tmp_path)), "calib_size": 8, "calib_seq_len": 64}
    done = convert(ConvertOptions(output_dir=str(tmp_path / "all"), target=targets, **text, **options))
    assert [one.folder for one in done.targets] == [tmp_path / "all" / target for target in targets]
    for target in targets:
        own = {key: value for key, value in options.items() if key not in ("tp_size", "sm", "shard_size")}
        cut = ("tp_size", "sm") if target == "trtllm" else ("shard_size",)
        own |= {key: options[key] for key in cut if key in options}
        alone = tmp_path / target
        convert(ConvertOptions(output_dir=str(alone), target=(target,), **text, **own))
        files = {path.name for path in alone.iterdir()}
        assert files == {path.name for path in (tmp_path / "all" / target).iterdir()}
        for name in files:
            assert (alone / name).read_bytes() == (tmp_path / "all" / target / name).read_bytes(), name


def test_tensors_lie_in_files_of_a_size_with_an_index(tmp_path: Path) -> None:
    whole = made("compressed-tensors", "W8A8", tmp_path / "one")
    parts = made("compressed-tensors", "W8A8", tmp_path / "many", shard_size=0.001 / 8)
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in parts.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    one = load_file(whole / "model.safetensors")
    assert index["weight_map"].keys() == one.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(parts / file)[name].view(torch.uint8), one[name].view(torch.uint8)), name
    assert not (whole / "model.safetensors.index.json").exists()


def test_a_folder_is_complete(tmp_path: Path) -> None:
    """Tokenizer, chat template and generation config come along, to the byte; what is nobody's business does not."""
    source = Path(shutil.copytree(BASE, tmp_path / "hf"))
    for name in ("chat_template.jinja", "generation_config.json"):
        (source / name).write_text('{"eos_token_id": 2}')
    (source / "private.txt").write_text("secret")
    folder = made("compressed-tensors", "W8A16", tmp_path / "made", model_dir=str(source))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    assert not (folder / "private.txt").exists()
    recorded = json.loads((folder / "enginesmith.json").read_text())
    assert recorded["target"] == "compressed-tensors"
    assert recorded["files"].keys() == {path.name for path in folder.iterdir()} - {"enginesmith.json"}


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ({"rope_theta": 5e5}, (5e5, "default")),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, (5e5, "default")),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, (5e5, "linear")),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}, (5e5, "linear")),
    ],
)
def test_old_and_new_readers_find_the_rotary_embedding(
    source: dict[str, Any], wanted: tuple[float, str], tmp_path: Path
) -> None:
    """transformers 4 looks for rope_theta and rope_scaling, transformers 5 for rope_parameters."""
    hf = Path(shutil.copytree(BASE, tmp_path / "hf"))
    config = {k: v for k, v in json.loads((hf / "config.json").read_text()).items() if not k.startswith("rope")}
    (hf / "config.json").write_text(json.dumps(config | source))
    folder = made("modelopt", "FP8_PER_CHANNEL_PER_TOKEN", tmp_path / "made", model_dir=str(hf))
    written = json.loads((folder / "config.json").read_text())
    theta, kind = wanted
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == theta
    assert written["rope_parameters"]["rope_type"] == kind
    if kind != "default":
        assert written["rope_scaling"]["factor"] == written["rope_parameters"]["factor"] == 2.0
    assert written["torch_dtype"] == written["dtype"] == "float16"


def test_scales_that_a_reader_fuses_are_equal(tmp_path: Path) -> None:
    """q, k and v read one input, gate and up another: one scale of inputs, one of FP8 weights."""
    for target, quant in (
        ("compressed-tensors", "FP8"),
        ("modelopt", "FP8"),
        ("compressed-tensors", "W8A8_SQ_PER_CHANNEL"),
    ):
        held = load_file(made(target, quant, tmp_path / (target + quant)) / "model.safetensors")
        kinds = ("input_scale", "weight_scale") if quant == "FP8" else ("input_scale",)
        for layer in range(2):
            for fused in (("self_attn.q", "self_attn.k", "self_attn.v"), ("mlp.gate", "mlp.up")):
                for kind in kinds:
                    scales = {float(held[f"model.layers.{layer}.{part}_proj.{kind}"]) for part in fused}
                    assert len(scales) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": ("vllm",)}, "--target 'vllm': the targets are trtllm, edge, compressed-tensors, modelopt"),
        ({"target": ("edge", "edge")}, "--target edge is given twice"),
        ({"target": ()}, "--target: give one of"),
        (
            {"target": ("edge",), "quant": "W8A8"},
            "compressed-tensors holds it, and --target edge holds W8A8_SQ",
        ),
        ({"target": ("modelopt",), "quant": "W8A8_SQ_PER_CHANNEL"}, "--target trtllm or edge or compressed-tensors"),
        ({"target": ("trtllm",), "quant": "FP8_DYNAMIC"}, "--target trtllm calls it FP8_PER_CHANNEL_PER_TOKEN"),
        ({"target": ("edge",), "quant": "FP8", "tp_size": 2}, "--tp_size is for --target trtllm, not edge"),
        ({"target": ("edge", "modelopt"), "quant": "FP8", "sm": 90}, "--sm is for --target trtllm, not edge"),
        ({"target": ("trtllm",), "quant": "FP8", "shard_size": 1.0}, "--shard_size is for --target edge or"),
        ({"target": ("edge",), "quant": "FP8", "rotate": True}, "--rotate is for --target trtllm"),
        ({"target": ("edge",), "quant": "W8A8_SQ_PER_CHANNEL", "fold": False}, "--no_fold is for --target trtllm"),
        ({"target": ("modelopt",), "quant": "FP8", "kv_cache": "INT8"}, "--kv_cache INT8"),
        ({"target": ("edge",), "quant": "W4A16_AWQ", "kv_cache": "FP8"}, "with W8A8_SQ_PER_CHANNEL and FP8 only"),
        ({"target": ("edge",), "quant": "W4A16_GPTQ"}, "give --symmetric"),
        ({"target": ("edge",), "quant": "FP8", "dtype": "bfloat16"}, "computes in float16"),
        ({"target": ("edge",), "quant": "W4A16_AWQ", "group_size": 32}, "--group_size 32: W4A16_AWQ takes 64 or 128"),
        (
            {"target": ("compressed-tensors",), "quant": "W8A8", "quant_layer": ("*down_proj=FP8",)},
            "reads no mixture of W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN and FP8",
        ),
        ({"target": ("trtllm", "edge"), "quant": "FP8", "save_stats": "stats"}, "--save_stats: give one --target"),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_what_a_target_cannot_hold_is_refused_before_work(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    options = {"model_dir": str(BASE), "output_dir": str(tmp_path / "out"), "calib_seq_len": 64} | options
    with pytest.raises(InputError) as refused:
        convert(ConvertOptions(**options))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_every_name_of_every_target_is_its_scheme() -> None:
    for kind in KINDS.values():
        for name, scheme in kind.schemes().items():
            assert kind.scheme(name).name == scheme.name


def test_edge_is_told_of_what_its_exporter_wants(tmp_path: Path) -> None:
    """A chat template is there or is asked for; the plugin for 4 bits takes rows of 64."""
    words = (
        "convert",
        "--model_dir",
        BASE,
        "--quant",
        "FP8",
        "--target",
        "edge",
        "--calib",
        "pydoc",
        "--calib_seq_len",
        32,
    )
    words += ("--calib_size", 2)
    told = run(*words, "--output_dir", tmp_path / "plain").stderr
    hf = Path(shutil.copytree(BASE, tmp_path / "hf"))
    (hf / "chat_template.jinja").write_text("{{ messages }}")
    quiet = run(*words, "--model_dir", hf, "--output_dir", tmp_path / "chat").stderr
    has = json.loads((BASE / "tokenizer_config.json").read_text()).get("chat_template")
    assert ("no chat template" in told) == (not has)
    assert "no chat template" not in quiet


def test_several_targets_are_told_one_by_one(tmp_path: Path) -> None:
    words = ("convert", "--model_dir", BASE, "--quant", "FP8_PER_CHANNEL_PER_TOKEN", "--output_dir", tmp_path / "out")
    shown = run(*words, "--target", "modelopt", "--target", "compressed-tensors").stdout
    assert [line.partition(":")[0] for line in shown.splitlines()] == [
        str(tmp_path / "out" / name) for name in ("modelopt", "compressed-tensors")
    ]
    told = json.loads(
        run(
            *words[:-1], tmp_path / "json", "--target", "edge", "--target", "modelopt", "--json", "--quant", "none"
        ).stdout
    )
    assert list(told) == ["edge", "modelopt"]


@pytest.mark.parametrize("name", ["weight", "input_layernorm"])
def test_float32_that_half_does_not_hold_is_refused(name: str, tmp_path: Path) -> None:
    """Edge-LLM computes in float16: a weight beyond it is one line, and no folder."""
    hf = Path(shutil.copytree(BASE, tmp_path / "hf"))
    held = {key: tensor.float() for key, tensor in load_file(hf / "model.safetensors").items()}
    key = "model.embed_tokens.weight" if name == "weight" else "model.layers.1.input_layernorm.weight"
    held[key].view(-1)[3] = 1e6
    save_file(held, hf / "model.safetensors", {"format": "pt"})
    config = json.loads((hf / "config.json").read_text()) | {"dtype": "float32"}
    (hf / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="float16"):
        made("edge", "FP8", tmp_path / "made", model_dir=str(hf))
    assert not (tmp_path / "made" / "out").exists()


def test_words_of_one_target_are_translated_for_another(tmp_path: Path) -> None:
    words = ("convert", "--model_dir", BASE, "--output_dir", tmp_path / "out", "--quant", "W8A8")
    told = run(*words, expect=2).stderr
    assert "--target trtllm calls it W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN" in told


def test_what_a_quantized_folder_holds_is_not_blamed_on_a_flag(tmp_path: Path) -> None:
    words = (
        "convert",
        "--model_dir",
        TARGETS / "compressed/w8a8_dynamic_smoothquant",
        "--output_dir",
        tmp_path / "out",
    )
    told = run(*words, "--target", "edge", expect=2).stderr
    assert "config.json: the folder's compressed-tensors int-quantized weights are" in told
    assert "give --requantize --quant W8A8_SQ_PER_CHANNEL" in told


def test_one_target_may_be_a_text_and_their_parent_is_none(tmp_path: Path) -> None:
    one = ConvertOptions(str(BASE), str(tmp_path / "one"), quant="FP8_PER_CHANNEL_PER_TOKEN", target="modelopt")
    assert one.target == ("modelopt",)
    run("convert", "--model_dir", BASE, "--output_dir", tmp_path / "all", "--target", "edge", "--target", "modelopt")
    assert "give one: edge, modelopt" in run("verify", tmp_path / "all", expect=2).stderr
