"""What recipes may not say, each refused in a line and before work."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginesmith.build.recipe import read_recipe
from enginesmith.convert.errors import InputError, printable
from tests.command import run

LATE: list[tuple[dict[str, Any], str]] = [
    ({"convert": {"calib": "nowhere.txt"}}, "--calib: "),
    ({"convert": {"calib_seq_len": 65}}, "--calib_seq_len 65"),
    ({"convert": {"device": "x"}}, "--device: 'x'"),
    ({"convert": {"tp_size": 3}}, "--tp_size 3 does not divide"),
    ({"convert": {"exclude": ["*.nothing"]}}, "--exclude '*.nothing'"),
    ({"verify": {"text": "nowhere.txt"}}, "--text: "),
    ({"verify": {"seq_len": 65}}, "--seq_len 65"),
    ({"verify": {"device": "x"}}, "--device: 'x'"),
    ({"build": {"gpu": "T4"}}, "0.14 was the last for T4"),
    ({"build": {"gpu": "A1000"}}, "is not listed"),
    ({"build": {"gpu": "B200"}}, "build: "),
    ({"build": {"release": "9.9"}}, "build: "),
    ({"build": {"max_input_len": 65}}, "build: --max_input_len 65 is longer than the model's 64 positions"),
    ({"build": {"max_seq_len": 16}}, "build: --max_input_len 32 is longer than --max_seq_len 16"),
    ({"build": {"max_seq_len": 40, "max_output_len": 8}}, "build: --max_output_len and --max_seq_len"),
    ({"build": {"max_num_tokens": 8}}, "build: --max_num_tokens 8"),
    ({"build": {"use_paged_context_fmha": True}, "convert": {"kv_cache": "INT8"}}, "build: "),
    (
        {"build": {"gpu": "H100"}, "convert": {"quant": "W8A16", "tp_size": 1, "exclude": ["*.mlp"]}},
        "its weights are arranged for",
    ),
    ({"triton": {"tokenizer_dir": "nowhere"}}, "triton: --tokenizer_dir: "),
    ({"triton": {"max_batch_size": 5}}, "triton: --max_batch_size 5: the engine was built for 1 to 4"),
    ({"triton": {"mount_dir": "relative"}}, "triton: --mount_dir relative"),
    ({"triton": {"chat": True}}, "triton: --chat: "),
    ({"triton": {"enable_kv_cache_reuse": True}, "convert": {"kv_cache": "INT8"}}, "triton: --enable_kv_cache_reuse"),
    ({"convert": {"target": ["edge"], "quant": "FP8", "tp_size": 1}}, "build: engines are built of --target trtllm"),
    ({"convert": {"target": ["edge", "trtllm"], "quant": "FP8"}}, "convert.target: a recipe makes one, not edge, "),
]


@pytest.mark.parametrize(("changes", "reason"), LATE)
def test_what_a_later_step_would_refuse_is_refused_first(
    changes: dict[str, Any], reason: str, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    error = run("run", recipe(**changes), expect=2).stderr
    assert reason in error
    assert "build: triton" not in error
    assert tempfile.gettempdir() + "/enginesmith" not in error
    assert not (tmp_path / "release").exists()


# What a flag and a recipe's key refuse, with the same words.
OUT_OF_BOUNDS: list[tuple[str, str, Any]] = [
    ("convert", "tp_size", 0),
    ("convert", "tp_size", 10**30),
    ("convert", "pp_size", -1),
    ("convert", "calib_size", 0),
    ("convert", "calib_seq_len", 1),
    ("convert", "group_size", 10**30),
    ("convert", "group_size", 16),
    ("convert", "sm", -1),
    ("convert", "sm", 85),
    ("convert", "seed", -1),
    ("convert", "seed", 2**63),
    ("convert", "alpha", 1.5),
    ("convert", "alpha", float("nan")),
    ("convert", "dtype", "float8"),
    ("convert", "quant", "W8A8_SQ_PER_CHANEL"),
    ("convert", "kv_cache", "INT4"),
    ("convert", "act_range", "widest"),
    ("convert", "rounding", "up"),
    ("convert", "propagate", "both"),
    ("verify", "chunks", 0),
    ("verify", "seq_len", 1),
    ("verify", "max_ppl_increase", float("inf")),
    ("build", "sm", 49),
    ("build", "gpu_memory", 0.5),
    ("build", "gpu_memory", 5000.0),
    ("build", "preset", "fast"),
    ("build", "max_output_len", -1),
    ("build", "kv_cache_free_gpu_mem_fraction", 0.0),
    ("build", "kv_cache_free_gpu_mem_fraction", 7.0),
    ("build", "max_batch_size", 0),
    ("build", "max_batch_size", 2**31),
    ("build", "gemm_plugin", "fast"),
    ("triton", "max_batch_size", -1),
    ("triton", "max_queue_delay", -1),
    ("triton", "max_tokens_in_paged_kv_cache", 0),
    ("triton", "kv_cache_free_gpu_mem_fraction", 7.0),
    ("triton", "batch_scheduler_policy", "x"),
    ("triton", "bls_instances", 10**30),
    ("triton", "preprocessing_instances", 0),
]
NEEDED = {
    "convert": ["--model_dir", "/no", "--output_dir", "/no"],
    "verify": ["/no"],
    "build": ["--checkpoint_dir", "/no", "--output_dir", "/no"],
    "triton": ["--engine_dir", "/no", "--tokenizer_dir", "/no", "--output_dir", "/no"],
}


@pytest.mark.parametrize(("section", "key", "value"), OUT_OF_BOUNDS)
def test_bounds_are_the_same_everywhere(section: str, key: str, value: Any, recipe: Callable[..., Path]) -> None:
    with pytest.raises(InputError) as refused:
        read_recipe(recipe(**{section: {key: value}}))
    in_recipe = str(refused.value)
    assert in_recipe.startswith(f"recipe.yaml: {section}.{key} is ")
    typed = run(section, *NEEDED[section], f"--{key}", value, expect=2).stderr
    assert typed == f"enginesmith: --{key} is " + in_recipe.removeprefix(f"recipe.yaml: {section}.{key} is ") + "\n"


def test_words_are_read_in_any_case_everywhere(recipe: Callable[..., Path]) -> None:
    read = read_recipe(recipe(convert={"quant": "w8a16", "kv_cache": "none", "alpha": "auto", "dtype": "BFloat16"}))
    assert read.convert["quant"] == "W8A16"
    assert read.convert["dtype"] == "bfloat16"
    assert read.convert["kv_cache"] is read.convert["alpha"] is None


@pytest.mark.parametrize(
    ("section", "key"),
    [("convert", "calib"), ("verify", "text"), ("triton", "tokenizer_dir"), ("triton", "mount_dir"), ("build", "gpu")],
)
@pytest.mark.parametrize("value", ["", "a\0b", "\ud800"])
def test_texts_that_name_nothing(section: str, key: str, value: str, recipe: Callable[..., Path]) -> None:
    path = recipe(**{section: {key: "@"}})
    path.write_text(path.read_text().replace("'@'", json.dumps(value)))
    with pytest.raises(InputError, match=f"{section}.{key} is "):
        read_recipe(path)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"convrt": {}}, "unknown key 'convrt'; did you mean convert?"),
    ({"convert": {"quantt": "x"}}, "convert has no 'quantt'; did you mean quant?"),
    ({"convert": {"tp_size": "two"}}, "convert.tp_size is 'two'; a whole number from 1"),
    ({"convert": {"fold": 1}}, "convert.fold is 1; true or false is needed"),
    ({"verify": {"max_ppl_increase": "2%"}}, "verify.max_ppl_increase is '2%'; a finite number is needed"),
    ({"build": {"gemm_plugin": "fast"}}, "build.gemm_plugin is 'fast'; use one of: auto"),
    ({"build": {"max_batch_size": 0}}, "a whole number from 1"),
    ({"build": {"strip_plan": 1}}, "build.strip_plan is 1; true or false is needed"),
    ({"build": {"input_timing_cache": ""}}, "build.input_timing_cache is ''; a text that is not empty is needed"),
    ({"build": {"smooth_quant_gemm_plugin": "float16"}}, "quant_algo enables it"),
    ({"build": {"max_batch": 4}}, "build has no 'max_batch'; did you mean max_batch_size?"),
    ({"build": {"engine": "maybe"}}, "build.engine is 'maybe'; use one of: auto, required, never"),
    ({"build": {"preset": "fast"}}, "build.preset is 'fast'; use one of: latency, throughput"),
    ({"triton": {"decoupled": "yes please"}}, "triton.decoupled"),
    ({"triton": []}, "triton must be a mapping"),
    ({"model_dir": 5}, "model_dir is needed"),
    ({"model_dir": "a\0b"}, "model_dir is needed"),
    ({"verify": {"max_ppl_increase": float("nan")}}, "a finite number is needed"),
    ({"build": "left out"}, "triton needs a build section"),
    ({"build": {"max_seq_len": 40, "max_decoder_seq_len": 50}}, "are one flag"),
    ({"build": {"max_seq_len": 10**30}}, "a whole number from 1"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD)
def test_bad_recipes_are_refused(changes: dict[str, Any], reason: str, recipe: Callable[..., Path]) -> None:
    with pytest.raises(InputError) as refused:
        read_recipe(recipe(**changes))
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", r"not readable as YAML \(.* in line 1\)$"),
        ("a: b\nexclude: [*.mlp]", r"in line 2; a pattern that begins with \* needs quotes\)$"),
        ("- 1", "holds no mapping"),
        ("a: !!python/object/apply:os.system ['true']", "not readable as YAML"),
        ("a: 1\na: 2", "'a' is given twice"),
        ("a: &a [1]\nb: *a", "aliases are not read"),
        ("x: " + "[" * 5000, "not readable as YAML"),
        ("\0", "not readable as YAML"),
        ("a: !!bool abc", "not readable as YAML"),
        ("a: !!int ''", "not readable as YAML"),
        ("a: !!timestamp abc", "not readable as YAML"),
        ("a: !!binary x", "not readable as YAML"),
        ("a: !!float x", "not readable as YAML"),
        ("? [a]\n: 1", "not readable as YAML"),
        ("a: 2026-99-99", "not readable as YAML"),
        ("a: " + "9" * 9999, "not readable as YAML"),
        ("\ufffe", "not readable as YAML"),
        ('"' + "k" * 999 + '": 1', "unknown key"),
        ('model_dir: "\\ud800"', "model_dir is needed"),
    ],
)
def test_broken_yaml_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=reason) as refused:
        read_recipe(path)
    assert len(printable(str(refused.value))) <= 400


def test_many_keys_take_no_longer_than_few(tmp_path: Path) -> None:
    """Each is looked up, not compared with all before it; 30,000 keys would be 450 million comparisons."""
    path = tmp_path / "r.yaml"
    path.write_text("\n".join(f"{key}: 1" for key in range(20_000)))
    with pytest.raises(InputError, match="unknown key 0"):
        read_recipe(path)
    path.write_text("a: 1\n" * 10**6)
    with pytest.raises(InputError, match="larger than"):
        read_recipe(path)


def test_a_folder_with_other_files_is_not_touched(recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "mine").write_text("precious")
    assert "no earlier run; choose an empty folder" in run("run", recipe(), expect=2).stderr
    assert (tmp_path / "release" / "mine").read_text() == "precious"


@pytest.mark.parametrize(("name", "words"), [("file", "cannot be used"), ("file/release", "cannot be written")])
def test_a_folder_that_cannot_be_made(name: str, words: str, recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"{words} (Not a directory)" in run("run", recipe(output_dir=name), expect=2).stderr


def test_a_model_that_is_not_there_is_told_by_where_it_was_named(recipe: Callable[..., Path]) -> None:
    file = recipe(model_dir="nowhere")
    assert "recipe.yaml: model_dir: " in run("run", file, expect=2).stderr
    assert "enginesmith: --model_dir: " in run("run", file, "--model_dir", "nowhere", expect=2).stderr


@pytest.mark.parametrize("name", ["model_dir", "output_dir"])
def test_a_folder_without_a_name(name: str, recipe: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=f"--{name} is empty; give a folder"):
        read_recipe(recipe(), **{name: ""})
