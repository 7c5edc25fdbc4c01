"""Every key of a checkpoint's config.json and quant_cfg.json: verify, build and plugins read them alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enginesmith.build.checkpoint_folder import CheckpointFolder
from enginesmith.convert.errors import InputError
from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.targets.trtllm.keys import EFFECTLESS, MAPPING_FIXED, MOE_EFFECTLESS, MOE_FIXED, fixed
from enginesmith.convert.targets.trtllm.mixture import quant_algo
from enginesmith.convert.targets.trtllm.stated import REQUIRED, Stated
from tests.build_folders import write_checkpoint
from tests.checkpoint_folders import (
    MANIFEST,
    WIDE,
    accepted,
    checkpoint_of,
    planned,
    refused,
    rewrite,
    state,
)
from tests.command import run
from tests.conftest import DATA, TINY

ODD: list[Any] = ["x", "", 0, -1, 7, 2.5, True, False, [], [1], {}, {"a": 1}, 10**400, "\x1b[31m" * 1000]
FIXED = fixed(read_model(TINY))
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")
# Key -> the odd values that it may well have.
MAY_BE: dict[str, list[Any]] = {
    "architecture": ["x", "\x1b[31m" * 1000],  # build plans any
    "dtype": [],
    "logits_dtype": [],
    "hidden_act": [],
    "position_embedding_type": [],
    **{key: [7] for key in SIZES},
    "num_key_value_heads": [],
    "intermediate_size": [],
    "head_size": [],
    "norm_epsilon": [True],
    "rotary_base": [7, 2.5],
    "rotary_scaling": [{}],
    "attn_bias": [True, False],
    "mlp_bias": [True, False],
    "use_parallel_embedding": [True, False],
    "embedding_sharding_dim": [0],
    "share_embedding_table": [False],
    "runtime_defaults": [{}],
    "mapping": [{}],
    "mapping.tp_size": [],
    "mapping.pp_size": [],
    "mapping.world_size": [],
    "mapping.cp_size": [],
    "mapping.moe_tp_size": [-1],
    "mapping.moe_ep_size": [-1],
    "mapping.attn_tp_size": [-1],
    "mapping.gpus_per_node": [0, -1, 7, 10**400],
    "quantization": [{}],
    "quantization.quant_algo": [],
    "quantization.kv_cache_quant_algo": [],
    "quantization.group_size": [7],
    "quantization.smoothquant_val": [0],
    "quantization.clamp_val": [],
    "quantization.use_meta_recipe": [False],
    "quantization.has_zero_point": [False],
    "quantization.pre_quant_scale": [False],
    "quantization.exclude_modules": [[]],
    "rotary_embedding_dim": [],
    "rotary_dim": [],
    "bias": [False],
    "moe": [{}],
    "anything": [],
    "moe.anything": [],
    "mapping.anything": [],
    "quantization.anything": [],
    "quantization.quantized_layers": [],
    "runtime_defaults.anything": [],
    "runtime_defaults.sink_token_length": [],
    "runtime_defaults.max_attention_window": [[1]],
    **{key: [value] for key, value in FIXED.items()},
    **{f"moe.{key}": [value] for key, value in MOE_FIXED.items()},
    **{f"mapping.{key}": [value] for key, value in MAPPING_FIXED.items()},
    **{key: [odd for odd in ODD if type(odd) in types] for key, types in EFFECTLESS.items()},
    **{f"moe.{key}": [odd for odd in ODD if type(odd) in types] for key, types in MOE_EFFECTLESS.items()},
}


# What lines call a key, where it is not its own name.
NAMED = {
    "quantization.quant_algo": "quant",
    "quantization.kv_cache_quant_algo": "",
    "intermediate_size": "intermediate",
}


@pytest.mark.parametrize("key", MAY_BE)
def test_every_key_is_read(key: str, plain: Path) -> None:
    """Any odd value of any key is refused by all readers, unless it is one that the key may have."""
    before = (plain / "config.json").read_bytes()
    for odd in ODD:
        fine = any(type(odd) is type(value) and odd == value for value in MAY_BE[key])
        if fine:
            continue
        state(plain, key, odd)
        refused(plain, NAMED.get(key, key.rpartition(".")[2]) if not isinstance(odd, dict) else "")
        (plain / "config.json").unlink()
        (plain / "config.json").write_bytes(before)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *FIXED.items(),
        *((f"moe.{key}", value) for key, value in MOE_FIXED.items()),
        *((f"mapping.{key}", value) for key, value in MAPPING_FIXED.items()),
        ("rotary_pct", 1),
        ("bias", False),
        ("rotary_dim", 16),
        ("rotary_embedding_dim", None),
        ("producer", {"name": "modelopt", "version": "0.21"}),
        ("version", "0.16.0"),
        ("rank", 1),
        ("tie_word_embeddings", True),
        ("logits_dtype", "float16"),
        ("runtime_defaults", {"max_attention_window": None, "sink_token_length": None}),
        ("moe", {}),
        ("mapping.rank", 0),
        ("mapping.moe_tp_size", -1),
        ("mapping.moe_cluster_size", 1),
        ("mapping.attn_cp_size", 1),
        ("quantization.mamba_ssm_cache_dtype", None),
        ("quantization.smoothquant_val", None),
        ("quantization.smoothquant_val", 0.85),
        ("anything", None),
    ],
)
def test_what_other_converters_write_is_accepted(key: str, value: Any, plain: Path) -> None:
    state(plain, key, value)
    accepted(plain)


@pytest.mark.parametrize("architecture", ["llama", "llama-mha", "llama31", "mistral"])
def test_every_config_that_upstream_writes_is_accepted(architecture: str, tmp_path: Path) -> None:
    manifest = json.loads((DATA / f"{architecture}.json").read_text())
    for patch in manifest["config_patches"]:
        config = {**manifest["config_base"], **patch["set"]}
        for key in patch.get("removed", []):
            config.pop(key, None)
        (tmp_path / "config.json").write_text(json.dumps(config))
        stated = Stated(tmp_path)
        assert stated.model is not None
        if config["quantization"]["quant_algo"] in (None, "FP8", "W4A16_AWQ", "W8A8_SQ_PER_CHANNEL"):
            assert quant_algo(stated.read_precision()) == config["quantization"]["quant_algo"]


@pytest.mark.parametrize("damage", ['"x": NaN, ', '"x": 1e999, ', '"dtype": "float16", ', '"x": "\\ud800", '])
def test_json_that_readers_take_differently_is_refused(damage: str, plain: Path) -> None:
    path = plain / "config.json"
    text = path.read_text().replace("{", "{" + damage, 1)
    path.unlink()
    path.write_text(text)
    refused(plain, "not readable as JSON")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"mapping": {"pp_size": 3}}, "layers cannot be cut into 3 equal stages"),
        (
            {"mapping": {"tp_size": 3}, "use_parallel_embedding": True, "embedding_sharding_dim": 1},
            "embedding_sharding_dim must be 0: 3 ranks do not divide hidden_size",
        ),
    ],
)
def test_mappings_that_do_not_divide(said: dict[str, Any], words: str, plain: Path) -> None:
    for key, value in said.items():
        state(plain, key, value)
    refused(plain, words)


def test_a_window_that_is_not_the_manifests(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, {"architectures": ["MistralForCausalLM"], "sliding_window": 8})
    state(checkpoint, "runtime_defaults.max_attention_window", [8])
    assert Stated(checkpoint).sliding_window == 8
    state(checkpoint, "runtime_defaults.max_attention_window", [16])
    refused(checkpoint, "max_attention_window must be 8 as in enginesmith.json", [Checkpoint])


@pytest.mark.parametrize("key", REQUIRED)
def test_what_every_checkpoint_says(key: str, plain: Path) -> None:
    rewrite(plain / "config.json", lambda config: config.pop(key))
    refused(plain, f"no {key} in it; is this a TensorRT-LLM checkpoint?")


@pytest.mark.parametrize("strength", [1.5, -0.1, True, "0.5"])
def test_a_strength_that_no_smoothing_has(strength: Any, plain: Path) -> None:
    state(plain, "quantization.smoothquant_val", strength)
    refused(plain, "smoothquant_val must be a number from 0 to 1")


@pytest.mark.parametrize(
    ("quant", "left", "words"),
    [
        ("W4A16_AWQ", "mlp.fc", "mlp.fc+gate: its linears are not quantized alike"),
        ("FP8_PER_CHANNEL_PER_TOKEN", "input_layernorm", "input_layernorm has no quantization, what reads its output"),
    ],
)
def test_modules_that_must_be_left_out_together(quant: str, left: str, words: str, tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, WIDE, quant=quant, group_size=64 if "AWQ" in quant else None)
    (folder / MANIFEST).unlink()
    state(folder, "quantization.exclude_modules", ["*lm_head", f"transformer.layers.0.{left}"])
    refused(folder, words, [Checkpoint])


@pytest.mark.parametrize(
    "scaling", [{"rope_type": "linear"}, {"rope_type": "x", "factor": 2}, {"factor": 2}, 0, "", False, []]
)
def test_rope_scaling_is_read_as_in_a_model(scaling: Any, plain: Path) -> None:
    state(plain, "rotary_scaling", scaling)
    refused(plain, "")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("has_zero_point", True, "has_zero_point must be false"),
        ("pre_quant_scale", False, "pre_quant_scale must be true"),
        ("pre_quant_scale", "yes", "pre_quant_scale must be true or false"),
        ("clamp_val", [-1, 1], "clamp_val must be null"),
        ("kv_cache_quant_algo", "FP8", "kv_cache_quant_algo"),
        ("use_meta_recipe", True, "use_meta_recipe must be false"),
        ("colour", 1, "unknown key 'colour'"),
    ],
)
def test_every_key_of_an_entry_is_read(key: str, value: Any, words: str, tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, WIDE, quant="W4A16_AWQ", group_size=64, quant_layer=("*.1.mlp=W8A16",))
    (folder / MANIFEST).unlink()
    entry = "transformer.layers.0.mlp.fc"
    rewrite(folder / "quant_cfg.json", lambda said: said["quantized_layers"][entry].update({key: value}))
    refused(folder, words)


def test_quant_cfg_itself_is_read(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, WIDE, quant="W8A16", quant_layer=("*.1.mlp=W4A16",))
    (folder / MANIFEST).unlink()
    for key, value in (("colour", 1), ("quant_algo", "FP8"), ("exclude_modules", ["*"]), ("quantized_layers", [])):
        before = (folder / "quant_cfg.json").read_text()
        rewrite(folder / "quant_cfg.json", lambda said, key=key, value=value: said.update({key: value}))  # type: ignore[misc]
        refused(folder, key)
        (folder / "quant_cfg.json").write_text(before)
    state(folder, "quantization.quantized_layers", {})
    refused(folder, "quantized_layers")


def test_no_quantization_by_its_name(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path)
    (folder / MANIFEST).unlink()
    state(folder, "quantization.quant_algo", "NO_QUANT")
    accepted(folder)


def test_heads_that_do_not_divide_the_hidden_size(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, {"head_dim": 24})
    (folder / MANIFEST).unlink()
    rewrite(folder / "config.json", lambda config: config.update(num_attention_heads=5, num_key_value_heads=5))
    rewrite(folder / "config.json", lambda config: config.pop("head_size"))
    refused(folder, "hidden_size 64 is no multiple of num_attention_heads 5; state head_size")


def test_linears_of_sizes_that_no_kernel_takes(plain: Path) -> None:
    state(plain, "intermediate_size", 100)
    refused(
        plain,
        "mlp.fc: SmoothQuantGemm takes out_features in multiples of 8 and in_features of 16; on one of 2 ra",
        [planned],
    )


def test_a_rank_with_digits_of_another_script_is_no_rank(plain: Path) -> None:
    (plain / "rank1.safetensors").rename(plain / "rank\u0661.safetensors")
    with pytest.raises(InputError, match="there are files for 0;"):
        CheckpointFolder(plain)


def test_other_families_are_left_to_trtllm_build(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "ck", residual_mlp=True, query_pre_attn_scalar=256)
    assert any("SomeForCausalLM is not converted here" in warning for warning in planned(folder).warnings)


def test_verify_build_and_plugins_say_so(plain: Path, tmp_path: Path) -> None:
    state(plain, "qk_layernorm", True)
    build = ["build", "--checkpoint_dir", plain, "--output_dir", tmp_path / "plan", "--plan_only", "--gpu", "A100"]
    for words in (["verify", plain], ["plugins", plain], build):
        assert "config.json: qk_layernorm must be false, not True" in run(*words, expect=2).stderr
    assert not (tmp_path / "plan").exists()
