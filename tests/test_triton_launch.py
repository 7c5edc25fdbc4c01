"""How a repository is started: its script, the docker command that the generator prints, and the command itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from enginesmith.build.triton import generate as generate_module
from enginesmith.build.triton.generate import generate, start_command
from enginesmith.build.triton.launch import serve_image
from enginesmith.build.triton.options import TritonOptions

from .command import run
from .triton_folders import write_engine, write_tokenizer


def options(folder: Path, engine: dict[str, Any] | None = None, **more: Any) -> TritonOptions:
    folders = write_engine(folder / "engine", **(engine or {})), write_tokenizer(folder / "tokenizer"), folder / "out"
    return TritonOptions(*map(str, folders), **more)


@pytest.mark.parametrize("ranks", [1, 3])
def test_launch_script_starts_a_process_a_rank(ranks: int, tmp_path: Path) -> None:
    repository = generate(options(tmp_path / "it's $(here)", {"ranks": ranks}))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("tritonserver", "mpirun"):
        (programs / name).write_text('#!/bin/bash\nprintf \'%s\\n\' "${0##*/}" "$@"\n')
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "HTTP_PORT": "9000"}
    done = subprocess.run(
        [repository / "launch.sh", "--log-verbose=1"], env=environment, capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    assert words[0] == ("tritonserver" if ranks == 1 else "mpirun")
    assert words.count(f"--model-repository={repository}") == ranks
    assert words.count("--log-verbose=1") == ranks
    assert words.count("--load-model=tensorrt_llm") == ranks - 1
    assert words.count(":") == ranks - 1
    assert "--http-port=9000" in words


def test_launch_script_where_cd_looks_elsewhere(tmp_path: Path) -> None:
    repository = generate(options(tmp_path))
    programs, other = tmp_path / "bin", tmp_path / "other" / "out"
    programs.mkdir()
    other.mkdir(parents=True)
    (programs / "tritonserver").write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
    (programs / "tritonserver").chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "CDPATH": str(other.parent)}
    command = ["bash", "out/launch.sh"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == f"--model-repository={repository}"


def test_launch_script_outside_the_container_names_it(tmp_path: Path) -> None:
    repository = generate(options(tmp_path))
    done = subprocess.run([repository / "launch.sh"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 127
    assert done.stderr == (
        "launch.sh: no tritonserver here; run this in nvcr.io/nvidia/tritonserver:24.12-trtllm-python-py3 "
        "(TensorRT-LLM 0.16.0)\n"
    )


@pytest.mark.parametrize(
    ("version", "tag"),
    [
        ("0.16.0", "24.12"),
        ("0.17.0.post1", "25.01"),
        ("1.2.1", "26.07"),
        ("1.2.0rc3", "<yy.mm>"),
        ("0.18.1", "<yy.mm>"),
    ],
)
def test_each_engine_has_its_container(version: str, tag: str) -> None:
    assert serve_image(version) == f"nvcr.io/nvidia/tritonserver:{tag}-trtllm-python-py3"


def test_the_container_sees_every_folder_under_its_own_path(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    mounts = " ".join(f"-v '{folder / name}:{folder / name}:ro'" for name in ("out", "engine", "tokenizer"))
    command = start_command(options(folder))
    assert f"{mounts} nvcr.io/nvidia/tritonserver:24.12-trtllm-python-py3 '{folder}/out/launch.sh'" in command


def test_a_self_contained_repository_is_mounted_alone(tmp_path: Path) -> None:
    command = start_command(options(tmp_path, self_contained=True, mount_dir="/srv/m"))
    assert command.count("-v ") == 1
    assert f"-v {tmp_path}/out:/srv/m:ro" in command
    assert command.endswith(" /srv/m/launch.sh")


def test_the_command(tmp_path: Path) -> None:
    folders = ["--engine-dir", write_engine(tmp_path / "engine"), "--tokenizer-dir", write_tokenizer(tmp_path / "t")]
    out = tmp_path / "repository"
    assert "launch.sh" in run("triton", *folders, "--output-dir", out, "--decoupled", "--max-batch-size=2").stdout
    assert "no problem found" in run("triton", "--check", out).stdout
    assert "not checked: whether engine files load" in run("triton", "--check", out).stdout
    found = json.loads(run("triton", "--check", out, "--json").stdout)
    assert {name: found[name] for name in ("repository", "ok", "problems")} == {
        "repository": str(out),
        "ok": True,
        "problems": [],
    }
    assert len(found["not_checked"]) == 2
    (out / "preprocessing" / "1" / "model.py").unlink()
    assert "FAILED preprocessing/1/model.py: no such file" in run("triton", "--check", out, expect=1).stderr
    assert not json.loads(run("triton", "--check", out, "--json", expect=1).stdout)["ok"]
    assert "exists" in run("triton", *folders, "--output_dir", out, expect=2).stderr
    assert "--engine_dir DIR is needed" in run("triton", expect=2).stderr
    assert "leave --output_dir out" in run("triton", "--check", out, "--output_dir", out, expect=2).stderr
    assert "is not a folder" in run("triton", "--check", tmp_path / "none", expect=2).stderr
    made_json = run("triton", *folders, "--output_dir", tmp_path / "two", "--json", "--no_bls", "--decoupled")
    assert json.loads(made_json.stdout) == {"repository": str(tmp_path / "two")}
    assert not (tmp_path / "two" / "tensorrt_llm_bls").exists()


@pytest.mark.parametrize(
    "flag",
    ["--chat", "--no_bls", "--max_batch_size=2", "--decoupled", "--max_queue_delay=0", "--self_contained",
     "--batch_scheduler_policy=max_utilization", "--disable_chunked_context", "--kv_cache_free_gpu_mem_fraction=1"],
)  # fmt: skip
def test_check_refuses_what_is_for_making(flag: str, tmp_path: Path) -> None:
    assert "--check makes nothing; leave --" in run("triton", "--check", tmp_path, flag, expect=2).stderr


def test_check_takes_the_mount(tmp_path: Path) -> None:
    made = generate(options(tmp_path, self_contained=True, mount_dir="/srv/m"))
    assert "no problem found" in run("triton", "--check", made, "--mount_dir=/srv/m").stdout


def test_the_command_says_how_to_start(tmp_path: Path) -> None:
    wanted = options(tmp_path, engine={"version": "1.2.1"})
    folders = ["--engine_dir", wanted.engine_dir, "--tokenizer_dir", wanted.tokenizer_dir]
    done = run("triton", *folders, "--output_dir", wanted.output_dir, "--kv_cache_free_gpu_mem_fraction=1")
    assert start_command(wanted) in done.stdout
    assert "tritonserver:26.07-trtllm-python-py3" in done.stdout
    assert f"python {wanted.output_dir}/try.py" in done.stdout


def test_sigterm_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    wanted = options(tmp_path)
    folders = ["--engine_dir", wanted.engine_dir, "--tokenizer_dir", wanted.tokenizer_dir]

    def terminated(*_: object) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        return ""

    monkeypatch.setattr(generate_module, "launch_script", terminated)
    try:
        assert "interrupted" in run("triton", *folders, "--output_dir", wanted.output_dir, expect=130).stderr
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "tokenizer"]
