"""Recipes: what they may say, which steps run, and that a run killed anywhere ends with the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from enginesmith.build.recipe import read_recipe
from enginesmith.convert.errors import InputError
from enginesmith.convert.files import sha256
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


def test_what_a_later_step_would_refuse_is_refused_first(recipe: Callable[..., Path], tmp_path: Path) -> None:
    for build, reason in (
        ({"gpu": "T4"}, "0.14 was the last for T4"),
        ({"gpu": "A1000"}, "is not listed"),
        ({"gpu": "B200"}, "refuses INT8 and INT4"),
        ({"kv_cache_free_gpu_mem_fraction": 5.0}, "at most 1 is needed"),
    ):
        assert reason in run("run", recipe(build=build), expect=2).stderr
    assert "nowhere is not a folder" in run("run", recipe(triton={"tokenizer_dir": "nowhere"}), expect=2).stderr
    assert not (tmp_path / "release").exists()


def test_a_broken_note_makes_its_step_run_again(recipe: Callable[..., Path], tmp_path: Path) -> None:
    only = {"build": "left out", "triton": "left out"}
    run("run", recipe(**only), "--json")
    (tmp_path / "release" / ".steps" / "verify.json").write_text("")
    assert statuses(run("run", recipe(**only), "--json")) == {"convert": "unchanged", "verify": "done"}


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
        ("a: [1", "not readable as YAML"),
        ("- 1", "holds no mapping"),
        ("a: !!python/object/apply:os.system ['true']", "not readable as YAML"),
        ("a: 1\na: 2", "'a' is given twice"),
        ("a: &a [1]\nb: *a", "aliases are not read"),
        ("x: " + "[" * 5000, "not readable as YAML"),
        ("\0", "not readable as YAML"),
    ],
)
def test_broken_yaml_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=reason):
        read_recipe(path)


def test_a_folder_with_other_files_is_not_touched(recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "mine").write_text("precious")
    assert "no earlier run; choose an empty folder" in run("run", recipe(), expect=2).stderr
    assert (tmp_path / "release" / "mine").read_text() == "precious"


def test_a_model_that_is_not_there_is_told_by_where_it_was_named(recipe: Callable[..., Path]) -> None:
    file = recipe(model_dir="nowhere")
    assert "recipe.yaml: model_dir: " in run("run", file, expect=2).stderr
    assert "enginesmith: --model_dir: " in run("run", file, "--model_dir", "nowhere", expect=2).stderr


@pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent / "examples").glob("recipes/*.yaml")))
def test_the_examples_are_recipes(path: Path) -> None:
    assert read_recipe(path).build is not None
