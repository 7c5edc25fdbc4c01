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

import pytest

from enginesmith.build.kept import only_one
from enginesmith.build.recipe import read_recipe
from enginesmith.convert.files.disk import sha256
from tests.build_folders import fake_machine
from tests.command import Done, run


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


def test_a_folder_for_another_runtime_is_made_and_proven(recipe: Callable[..., Path], tmp_path: Path) -> None:
    chosen = {"target": ["compressed-tensors"], "quant": "W8A8", "tp_size": 1}
    done = run("run", recipe(convert=chosen, build="left out", triton="left out"), "--json")
    assert statuses(done) == {"convert": "done", "verify": "done"}
    assert json.loads((tmp_path / "release/verify.json").read_text())["accuracy"]["mean_kl"] < 0.1


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


def test_one_run_at_a_time(recipe: Callable[..., Path], tmp_path: Path) -> None:
    with only_one(tmp_path / "release", []):
        assert f"another run is at work in {tmp_path / 'release'}" in run("run", recipe(), expect=2).stderr


@pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent / "examples").glob("recipes/*.yaml")))
def test_the_examples_are_recipes(path: Path) -> None:
    assert read_recipe(path).build is not None


def test_folders_of_the_command_line_are_read_as_the_system_does(recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "far" / "off").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/off")
    read = read_recipe(recipe(), output_dir=f"{tmp_path}/link/../release")
    assert os.path.realpath(read.output_dir) == os.path.realpath(tmp_path / "far" / "release")
