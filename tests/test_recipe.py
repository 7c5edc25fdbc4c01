"""Recipes: what they may say, which steps run, and that a run killed anywhere ends with the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from enginesmith.build.kept import only_one
from enginesmith.build.recipe import read_recipe
from enginesmith.convert.errors import InputError, printable
from enginesmith.convert.files.disk import sha256
from tests.build_folders import fake_machine
from tests.command import Done, run
from tests.triton_folders import write_tokenizer

Tiny = Callable[..., Path]
RECIPE: dict[str, Any] = {
    "model_dir": "hf",
    "output_dir": "release",
    "convert": {
        "quant": "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
        "calib": "ids.safetensors",
        "calib_size": 8,
        "calib_seq_len": 24,
        "tp_size": 2,
    },
    "verify": {"text": "ids.safetensors", "seq_len": 24, "max_ppl_increase": 50},
    "build": {"gpu": "A100", "release": "1.2.1", "max_batch_size": 4, "max_input_len": 32},
    "triton": {"decoupled": True},
}


@pytest.fixture
def recipe(tiny: Tiny, tmp_path: Path) -> Callable[..., Path]:
    """recipe(section={key: value}) -> a recipe file beside a tiny model with a tokenizer."""
    model = tiny(vocab_size=400)
    write_tokenizer(model)

    def write(**changes: Any) -> Path:
        document = {**RECIPE}
        for name, change in changes.items():
            document[name] = {**RECIPE.get(name, {}), **change} if isinstance(change, dict) else change
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in document.items() if value != "left out"}))
        return path

    return write


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    return fake_machine(tmp_path / "bin")


def statuses(done: Done) -> dict[str, str]:
    return {step["name"]: step["status"] for step in json.loads(done.stdout)["steps"]}


def test_without_tensorrt_llm_all_but_engines(recipe: Callable[..., Path], tmp_path: Path) -> None:
    done = run("run", recipe(), "--json")
    here = {"convert": "done", "verify": "done", "plan": "done", "build": "not here", "triton": "not here"}
    assert statuses(done) == here
    build = json.loads(done.stdout)["steps"][3]["result"]
    assert build["command"].startswith("bash ")
    again = run("run", recipe(), "--json")
    assert statuses(again) == {**here, "convert": "unchanged", "verify": "unchanged", "plan": "unchanged"}
    assert (tmp_path / "release" / "plan" / "build.sh").exists()


def test_only_what_changed_runs_again(recipe: Callable[..., Path]) -> None:
    run("run", recipe(triton="left out"), "--json")
    looser = statuses(run("run", recipe(verify={"max_ppl_increase": 60}), "--json"))
    assert looser["convert"] == "unchanged"
    assert looser["verify"] == "unchanged"
    other = statuses(run("run", recipe(build={"max_batch_size": 8}), "--json"))
    assert other["plan"] == "done"
    assert other["convert"] == "unchanged"
    reseeded = statuses(run("run", recipe(convert={"seed": 1}), "--json"))
    assert reseeded["convert"] == reseeded["verify"] == reseeded["plan"] == "done"


def test_a_changed_model_or_output_is_made_again(recipe: Callable[..., Path], tmp_path: Path) -> None:
    run("run", recipe(build="left out", triton="left out"), "--json")
    rank = tmp_path / "release" / "checkpoint" / "rank1.safetensors"
    before = sha256(rank)
    whole = rank.read_bytes()
    rank.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again = run("run", recipe(build="left out", triton="left out"), "--json")
    assert statuses(again) == {"convert": "done", "verify": "done"}
    assert sha256(rank) == before
    config = tmp_path / "hf" / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06'))
    changed = run("run", recipe(build="left out", triton="left out"), "--json")
    assert statuses(changed) == {"convert": "done", "verify": "done"}


def test_a_gate_that_fails_ends_the_run(recipe: Callable[..., Path], tmp_path: Path) -> None:
    failed = run("run", recipe(verify={"max_ppl_increase": -50}), "--json", expect=1)
    assert statuses(failed) == {"convert": "done", "verify": "failed"}
    assert json.loads(failed.stdout)["ok"] is False
    assert not (tmp_path / "release" / "plan").exists()
    assert statuses(run("run", recipe(), "--json"))["verify"] == "unchanged"
    shown = run("run", recipe(verify={"max_ppl_increase": -50}), expect=1)
    assert "more than --max_ppl_increase -50" in shown.stdout


def test_with_tensorrt_llm_up_to_the_repository(
    recipe: Callable[..., Path], machine: dict[str, str], tmp_path: Path
) -> None:
    """The engine is built in a process with the stand-in; everything else runs in this environment."""
    run("run", recipe(triton="left out"), "--json")
    built = subprocess.run(
        ["bash", tmp_path / "release/plan/build.sh", tmp_path / "release/checkpoint", tmp_path / "release/engine"],
        env={**machine, "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{machine['PATH']}"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    done = run("run", recipe(), "--json")
    assert statuses(done)["build"] == "unchanged"
    assert statuses(done)["triton"] == "done"
    assert (tmp_path / "release" / "repository" / "ensemble" / "config.pbtxt").exists()
    assert statuses(run("run", recipe(), "--json"))["triton"] == "unchanged"
    run("triton", "--check", tmp_path / "release" / "repository")


def test_an_engine_of_another_plan_is_not_served(
    recipe: Callable[..., Path], machine: dict[str, str], tmp_path: Path
) -> None:
    built = engine_elsewhere(recipe, machine, tmp_path)
    (built / "rank1.engine").write_bytes(b"other")
    damaged = statuses(run("run", recipe(), "--json"))
    assert damaged["build"] == damaged["triton"] == "not here"
    engine_elsewhere(recipe, machine, tmp_path)
    assert statuses(run("run", recipe(), "--json"))["triton"] == "done"
    other = statuses(run("run", recipe(build={"max_batch_size": 2}), "--json"))
    assert other["build"] == other["triton"] == "not here"
    assert not built.exists()
    assert not (tmp_path / "release" / "repository").exists()


def engine_elsewhere(recipe: Callable[..., Path], machine: dict[str, str], tmp_path: Path) -> Path:
    """Plan, then build with build.sh as another machine would."""
    run("run", recipe(triton="left out"), "--json")
    shutil.rmtree(tmp_path / "release/engine", ignore_errors=True)
    words = ["bash", tmp_path / "release/plan/build.sh", tmp_path / "release/checkpoint", tmp_path / "release/engine"]
    path = {**machine, "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{machine['PATH']}"}
    assert subprocess.run(words, env=path, capture_output=True).returncode == 0
    return tmp_path / "release" / "engine"


def test_a_changed_tokenizer_is_read_again(recipe: Callable[..., Path], tmp_path: Path) -> None:
    only = {"build": "left out", "triton": "left out"}
    run("run", recipe(**only), "--json")
    template = tmp_path / "hf" / "chat_template.jinja"
    template.write_text("{{ messages }}")
    assert statuses(run("run", recipe(**only), "--json")) == {"convert": "done", "verify": "done"}


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


def test_a_folder_for_another_runtime_is_made_and_proven(recipe: Callable[..., Path], tmp_path: Path) -> None:
    chosen = {"target": ["compressed-tensors"], "quant": "W8A8", "tp_size": 1}
    done = run("run", recipe(convert=chosen, build="left out", triton="left out"), "--json")
    assert statuses(done) == {"convert": "done", "verify": "done"}
    assert json.loads((tmp_path / "release/verify.json").read_text())["accuracy"]["mean_kl"] < 0.1


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


def test_a_broken_note_makes_its_step_run_again(recipe: Callable[..., Path], tmp_path: Path) -> None:
    only = {"build": "left out", "triton": "left out"}
    run("run", recipe(**only), "--json")
    note = tmp_path / "release" / ".steps" / "verify.json"
    whole = note.read_bytes()
    known = json.loads(whole)
    other = [
        known | {"result": value} for value in (None, [], {}, {"structure": None}, known["result"] | {"accuracy": 5})
    ]
    other += [{key: known[key] for key in known if key != lost} for lost in known]
    for text in [b"", b"null", b"[]", b"\xff", b"{}", whole[:-9], *(json.dumps(value).encode() for value in other)]:
        note.write_bytes(text)
        assert statuses(run("run", recipe(**only), "--json")) == {"convert": "unchanged", "verify": "done"}
        assert note.read_bytes() == whole


def test_engine_required_fails_where_there_is_none(recipe: Callable[..., Path]) -> None:
    failed = run("run", recipe(build={"engine": "required"}), "--json", expect=1)
    assert statuses(failed)["build"] == "failed"
    never = run("run", recipe(build={"engine": "never"}, triton="left out"), "--json")
    assert "build" not in statuses(never)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_killed_at_any_step_ends_with_the_same_bytes(recipe: Callable[..., Path], tmp_path: Path) -> None:
    path, output = recipe(), tmp_path / "release"
    run("run", path)
    undisturbed = snapshot(output)
    command = [sys.executable, "-c", "from enginesmith.cli.main import main; main()", "run", str(path)]
    for moment in (".checkpoint.partial", "checkpoint", ".steps/convert.json", "verify.json", "plan"):
        shutil.rmtree(output)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (output / moment).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        run("run", path)
        assert snapshot(output) == undisturbed, moment


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


def test_one_run_at_a_time(recipe: Callable[..., Path], tmp_path: Path) -> None:
    with only_one(tmp_path / "release", []):
        assert f"another run is at work in {tmp_path / 'release'}" in run("run", recipe(), expect=2).stderr


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


@pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent / "examples").glob("recipes/*.yaml")))
def test_the_examples_are_recipes(path: Path) -> None:
    assert read_recipe(path).build is not None


def test_folders_of_the_command_line_are_read_as_the_system_does(recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "far" / "off").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/off")
    read = read_recipe(recipe(), output_dir=f"{tmp_path}/link/../release")
    assert os.path.realpath(read.output_dir) == os.path.realpath(tmp_path / "far" / "release")
