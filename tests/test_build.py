"""Building and checking engines, with a stand-in for TensorRT-LLM: flags, plans as files, ranks, resume, manifests."""

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
from types import ModuleType

import pytest
from safetensors.torch import load_file, save_file

from enginesmith.build import engines
from enginesmith.build.build_engine import Refused, build_all, check_machine, only_build, this_machine
from enginesmith.build.checkpoint_folder import CheckpointFolder
from enginesmith.build.flags import FLAGS, REFUSED
from enginesmith.build.gpus import find
from enginesmith.build.plan import make_plan
from enginesmith.build.releases import RELEASES
from enginesmith.build.script import trtllm_build
from enginesmith.build.wishes import Wishes
from enginesmith.convert.errors import InputError
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from tests.build_folders import enginesmith, fake_machine, write_checkpoint
from tests.conftest import ALGORITHMS

Words = list[object]
Machine = dict[str, str]
Tiny = Callable[..., Path]
Converted = Callable[..., Checkpoint]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return fake_machine(tmp_path / "bin")


@pytest.fixture
def folders(tmp_path: Path) -> Words:
    """--checkpoint_dir and --output_dir of a two-rank checkpoint."""
    return [
        "--checkpoint_dir",
        write_checkpoint(tmp_path / "ck", ALGORITHMS[1], tp=2),
        "--output_dir",
        tmp_path / "out",
    ]


@pytest.fixture
def engine(folders: Words, machine: Machine, tmp_path: Path) -> Path:
    enginesmith("build", *folders, env=machine)
    return tmp_path / "out"


def test_plan_only_writes_what_a_container_needs(folders: Words, tmp_path: Path) -> None:
    shown = enginesmith("build", *folders, "--plan_only", "--gpu", "L4", "--max-batch-size", 8, "--max_input_len=512")
    assert shown.stdout.count("0.9 of the rest: KV cache") == shown.stdout.count("of the rest") == 2  # one a rank
    assert "build it with: bash" in shown.stdout
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert names == {"plan.json", "build_config.json", "build.sh", "build_engine.py", "checkpoint.sha256"}
    config = json.loads((out / "build_config.json").read_text())
    assert (config["max_batch_size"], config["max_input_len"]) == (8, 512)
    planned = json.loads((out / "plan.json").read_text())
    assert planned["build_config"] == config
    assert planned["plugins"]["smooth_quant_gemm_plugin"] == "float16"
    script = (out / "build.sh").read_text()
    assert "nvcr.io/nvidia/tensorrt-llm/release:1.2.1" in script
    assert str(tmp_path) not in script
    assert subprocess.run(["bash", "-n", out / "build.sh"]).returncode == 0


def test_without_tensorrt_llm_the_command_that_would_do_it(folders: Words, tmp_path: Path) -> None:
    failed = enginesmith("build", *folders, "--gpu", "A100", "--gemm_plugin", "auto", expect=2)
    assert "--gemm_plugin auto --plan_only && bash" in failed.stderr
    assert not (tmp_path / "out").exists()
    assert "say for which to plan with --gpu" in enginesmith("build", *folders, expect=2).stderr


def test_no_engine_is_built_without_tensorrt_llm(tmp_path: Path) -> None:
    checkpoint = CheckpointFolder(write_checkpoint(tmp_path / "ck", ALGORITHMS[1]))
    planned = make_plan(checkpoint, RELEASES[-1], find("A100"), Wishes({}))
    with pytest.raises(InputError, match="TensorRT-LLM is not installed here"):
        engines.build(planned, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_flag_of_trtllm_build_is_known(folders: Words) -> None:
    shown = enginesmith("build", "--help").stdout
    for flag in FLAGS:
        assert f"--{flag.name}" in shown
    assert "--smooth_quant_gemm_plugin" not in shown
    for name in ("smooth_quant_gemm_plugin", "auto_parallel", "lora_dir", "build_config"):
        assert f"--{name}: {REFUSED[name]}" in enginesmith("build", *folders, f"--{name}", "1", expect=2).stderr


def test_bad_words(folders: Words) -> None:
    for words, reason in (
        (["--gpu", "A100", "--gemm_plugin", "yes"], "use one of: auto"),
        (["--gpu", "A100", "--tp_size", 4], "the checkpoint has tp_size 2, pp_size 1"),
        (["--gpu", "A100", "--sm", 80], "give one of them"),
        (["--sm", 80], "--sm needs --gpu_memory"),
        (["--gpu", "A1000"], "is not listed"),
        (["--gpu", "A100", "--release", "2.0"], "use one of"),
        (["--gpu", "B200"], "refuses INT8 and INT4 on SM 100 to 119"),
        (["--gpu", "T4"], "0.14 was the last for T4"),
        (["--gpu", "A100", "--max_batch_size", 0], "a whole number from 1"),
        (["--gpu", "A100", "--gpu_memory", "nan"], "at most 4096 is needed"),
        (["--gpu", "A100", "--kv_cache_free_gpu_mem_fraction", "nan"], "at most 1 is needed"),
        (["--gpu", "A100", "--max_seq_len", 10**400], "a whole number from 1"),
        (["--gpu", "A100", "--fast_build"], "leave it out"),
        (["--gpu", "A100", "--plan_only", "--input_timing_cache", "x"], "not seen by build.sh"),
    ):
        assert reason in enginesmith("build", *folders, *words, expect=2).stderr


@pytest.mark.parametrize("release", RELEASES)
def test_the_same_by_hand_spells_every_flag_out(release: object, tmp_path: Path) -> None:
    checkpoint = CheckpointFolder(write_checkpoint(tmp_path / "ck", ALGORITHMS[1], "INT8"))
    wishes = Wishes({"gather_context_logits": True, "strip_plan": True, "logits_dtype": "float16", "workers": 2})
    words = trtllm_build(make_plan(checkpoint, release, find("A100"), wishes), "CK", "OUT")  # type: ignore[arg-type]
    line = " ".join(words)
    for piece in (
        "--use_paged_context_fmha disable", "--max_seq_len 8192", "--kv_cache_type paged", "--gather_context_logits",
        "--strip_plan", "--logits_dtype float16", "--workers 2", "--use_fused_mlp disable",
    ):  # fmt: skip
        assert piece in line
    assert "smooth_quant" not in line
    assert "opt_num_tokens" not in line


def test_every_rank_is_built_on_a_gpu_of_its_own(folders: Words, machine: Machine, tmp_path: Path) -> None:
    done = enginesmith("build", *folders, env=machine)
    assert "rank 1: building on GPU 1" in done.stderr
    out = tmp_path / "out"
    assert not (tmp_path / ".out.partial").exists()
    manifest = json.loads((out / "enginesmith.json").read_text())
    assert [rank["rank"] for rank in manifest["ranks"]] == [0, 1]
    assert manifest["machine"] == {
        "tensorrt_llm": "1.2.1", "tensorrt": "10.14.1.48", "cuda": "13.1", "gpu": "Fake A100", "sm": 80,
    }  # fmt: skip
    assert manifest["plan"]["checkpoint"]["quant_algo"] == ALGORITHMS[1]
    assert (out / "model.cache").read_bytes() == b"timings"
    assert "GPU 1" in (out / "logs" / "rank1.log").read_text()
    assert "yes" in enginesmith("check-engine", out, env=machine).stdout


def test_a_failed_build_goes_on_with_the_missing_rank(folders: Words, machine: Machine, tmp_path: Path) -> None:
    failed = enginesmith("build", *folders, "--workers", 1, env={**machine, "FAKE_FAIL_RANK": "1"}, expect=1)
    assert "out of tactics" in failed.stderr
    assert not (tmp_path / "out").exists()
    first = (tmp_path / ".out.partial" / "out" / "rank0.json").read_bytes()
    again = enginesmith("build", *folders, "--workers", 1, env=machine)
    assert "rank 0: finished before" in again.stderr
    assert "rank 0: building" not in again.stderr
    kept = json.loads(first)
    manifest = json.loads((tmp_path / "out" / "enginesmith.json").read_text())
    assert manifest["ranks"][0]["sha256"] == kept["sha256"]


def test_another_plan_builds_every_rank_again(folders: Words, machine: Machine, tmp_path: Path) -> None:
    enginesmith("build", *folders, env={**machine, "FAKE_FAIL_RANK": "1"}, expect=1)
    again = enginesmith("build", *folders, "--max_batch_size", 4, env=machine)
    assert "finished before" not in again.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["build_config"]["max_batch_size"] == 4


def test_a_killed_build_keeps_finished_ranks(folders: Words, machine: Machine, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from enginesmith.cli.main import main; main()", "build", *map(str, folders)]
    slow = {**machine, "FAKE_SLOW": "1"}
    process = subprocess.Popen([*command, "--workers", "1"], env=slow, stderr=subprocess.DEVNULL)
    record = tmp_path / ".out.partial" / "out" / "rank0.json"
    deadline = time.monotonic() + 60
    while not record.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = enginesmith("build", *folders, "--workers", 1, env=machine)
    assert "rank 0: finished before" in again.stderr


def test_a_changed_checkpoint_is_not_built(machine: Machine, tmp_path: Path, tiny: object, converted: object) -> None:
    made: Checkpoint = converted(tiny(), quant=ALGORITHMS[1])  # type: ignore[operator]
    rank = made.folder / "rank0.safetensors"
    stamp = rank.stat()
    whole = rank.read_bytes()
    rank.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    words = ["build", "--checkpoint_dir", made.folder, "--output_dir", tmp_path / "engine"]
    assert "differs from the one" in enginesmith(*words, "--plan_only", "--gpu", "A100", expect=2).stderr
    os.utime(rank, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert "differs from the one" in enginesmith(*words, env=machine, expect=2).stderr
    config = made.folder / "config.json"
    config.write_text(config.read_text().replace('"norm_epsilon": 1e-05', '"norm_epsilon": 1e-06'))
    assert "config.json: differs" in enginesmith(*words, "--plan_only", "--gpu", "A100", expect=2).stderr


def test_a_missing_tensor_is_seen_by_the_plan(tmp_path: Path, tiny: Tiny, converted: Converted) -> None:
    made = converted(tiny(), quant=ALGORITHMS[1])
    (made.folder / "enginesmith.json").unlink()
    tensors = load_file(made.folder / "rank0.safetensors")
    tensors.pop("transformer.layers.1.mlp.fc.per_channel_scale")
    save_file(tensors, made.folder / "rank0.safetensors")
    words = ["build", "--checkpoint_dir", made.folder, "--output_dir", tmp_path / "p", "--plan_only", "--gpu", "A100"]
    assert "layers.1.mlp.fc.per_channel_scale is missing" in enginesmith(*words, expect=2).stderr


def test_the_machine_must_be_the_plans(folders: Words, machine: Machine, tmp_path: Path) -> None:
    assert (
        "is installed here; plan for it"
        in enginesmith("build", *folders, "--release", "1.1", env=machine, expect=2).stderr
    )
    assert "this machine has A100" in enginesmith("build", *folders, "--gpu", "H100", env=machine, expect=2).stderr


def test_build_sh_builds_where_tensorrt_llm_is(folders: Words, machine: Machine, tmp_path: Path) -> None:
    enginesmith("build", *folders, "--plan_only", "--gpu", "A100")
    path = {**machine, "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{machine['PATH']}"}
    script = ["bash", str(tmp_path / "out" / "build.sh")]
    done = subprocess.run(script, env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    engine = tmp_path / "out" / "engine"
    assert {"rank0.engine", "rank1.engine", "config.json", "enginesmith.json"} <= {p.name for p in engine.iterdir()}
    assert "yes" in enginesmith("check-engine", engine, env=machine).stdout
    assert subprocess.run(script, env=path, capture_output=True).returncode == 2
    shutil.rmtree(engine)
    (tmp_path / "ck" / "config.json").write_text("{}")
    refused = subprocess.run(script, env=path, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "is not the checkpoint that was planned" in refused.stderr


def test_ranks_die_with_the_build(folders: Words, machine: Machine, tmp_path: Path) -> None:
    """A rank that outlived a killed build would write its engine into the next one."""
    command = [sys.executable, "-c", "from enginesmith.cli.main import main; main()", "build", *map(str, folders)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(command, env={**machine, "FAKE_SLOW": "60"}, stderr=subprocess.DEVNULL)
        log = tmp_path / ".out.partial" / "out" / "logs" / "rank1.log"
        deadline = time.monotonic() + 60
        while not (log.exists() and "building rank" in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        process.wait()
        while children_of(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not children_of(tmp_path)
        log.unlink()


def test_build_sh_is_stopped_with_its_ranks(folders: Words, machine: Machine, tmp_path: Path) -> None:
    """What docker stop sends ends the build at once, as Ctrl-C does."""
    enginesmith("build", *folders, "--plan_only", "--gpu", "A100")
    out = tmp_path / "out"
    words = [sys.executable, out / "build_engine.py", "--plan", out, "--checkpoint_dir", tmp_path / "ck"]
    process = subprocess.Popen(
        [*words, "--output_dir", out / "e"], env={**machine, "FAKE_SLOW": "60"}, stderr=subprocess.DEVNULL
    )
    log = out / "e" / "logs" / "rank1.log"
    deadline = time.monotonic() + 30
    while not (log.exists() and "building rank" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(30) not in (0, 1)
    assert not children_of(tmp_path)


def children_of(folder: Path) -> list[str]:
    """Processes whose command line names a folder."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words and "build_engine.py" in words:
            found.append(words)
    return found


def test_resume_looks_at_what_it_resumes(folders: Words, machine: Machine, tmp_path: Path) -> None:
    """Ranks of other weights, or files that were damaged meanwhile, are built again."""
    fails = {**machine, "FAKE_FAIL_RANK": "1"}
    for damage in (tmp_path / "ck" / "rank0.safetensors", tmp_path / ".out.partial" / "out" / "rank0.engine"):
        enginesmith("build", *folders, "--workers", 1, env=fails, expect=1)
        whole = damage.read_bytes()
        damage.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        again = enginesmith("build", *folders, "--workers", 1, env=fails, expect=1)
        assert "rank 0: building" in again.stderr
    (tmp_path / ".out.partial" / "out" / "config.json").unlink()
    assert "rank 0: building" in enginesmith("build", *folders, env=machine).stderr


def test_a_plan_does_not_wipe_out_a_build_that_can_go_on(folders: Words, machine: Machine) -> None:
    enginesmith("build", *folders, env={**machine, "FAKE_FAIL_RANK": "1"}, expect=1)
    refused = enginesmith("build", *folders, "--plan_only", "--gpu", "A100", expect=2)
    assert "holds a build that can go on" in refused.stderr


@pytest.mark.parametrize("name", ["it's", "a b", "$(touch x)", "`x`", 'q"q', "-dash", "\u00fc\u4e2d", "a}b"])
def test_build_sh_takes_any_folder_name(name: str, machine: Machine, tmp_path: Path) -> None:
    base = tmp_path / name
    checkpoint = write_checkpoint(base / "ck", ALGORITHMS[1])
    words = [f"--checkpoint_dir={checkpoint}", f"--output_dir={base / 'plan'}", "--plan_only", "--gpu", "A100"]
    enginesmith("build", *words)
    env = {**machine, "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{machine['PATH']}", "CDPATH": "/tmp"}
    done = subprocess.run(["bash", str(base / "plan" / "build.sh")], env=env, capture_output=True, text=True, cwd=base)
    assert done.returncode == 0, done.stderr
    assert (base / "plan" / "engine" / "rank0.engine").exists()
    assert not (base / "x").exists()


def test_only_visible_gpus_count(engine: Path, machine: Machine, tmp_path: Path) -> None:
    smi = tmp_path / "mixed" / "nvidia-smi"
    fake_machine(smi.parent)
    rows = "0, GPU-a, NVIDIA L4, 8.9, [N/A], 580\\n1, GPU-b, NVIDIA A100, PCIe, 8.0, 40960, 580\\n2, x\\377, y\\n"
    smi.write_text(f"#!/bin/sh\nprintf '{rows}'\n")
    mixed = {**machine, "PATH": f"{smi.parent}:{machine['PATH']}"}

    def verdict(visible: str, expect: int) -> str:
        return enginesmith("check-engine", engine, env={**mixed, "CUDA_VISIBLE_DEVICES": visible}, expect=expect).stderr

    assert "GPU 0 is L4 (SM 89)" in verdict("0,1", 1)
    assert "its 2 ranks need one each" in verdict("1", 1)
    assert "no NVIDIA GPU to be seen" in verdict("", 1)
    assert "no NVIDIA GPU to be seen" in verdict("-1", 1)
    verdict("GPU-b,1", 0)


def test_no_visible_gpu_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(Refused, match="hides every GPU"):
        build_all(tmp_path, tmp_path, tmp_path / "engine")


def test_a_plan_that_is_no_object_builds_nothing(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no JSON object"):
        build_all(tmp_path, tmp_path, tmp_path / "engine")


def test_one_build_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    first, second = (only_build(tmp_path / "logs") for _ in range(2))
    with first, pytest.raises(Refused, match=f"another build is at work in {tmp_path}$"), second:
        pass


def test_a_machine_that_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(Refused, match=r"TensorRT-LLM cannot be imported here .*; use NVIDIA's container"):
        this_machine()
    for name in ("tensorrt", "tensorrt_llm"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(Refused, match="no CUDA GPU is visible"):
        this_machine()


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"tensorrt_llm": "1.1.0"}, "the plan is for TensorRT-LLM 1.2.1, here is 1.1.0; plan again"),
        ({"sm": 89, "gpu": "L4"}, r"the plan is for A100 \(SM 80\), here is L4 \(SM 89\); build on that GPU"),
    ],
)
def test_a_plan_for_another_machine(other: dict[str, object], reason: str) -> None:
    planned = {"release": "1.2.1", "gpu": {"name": "A100", "sm": 80}}
    here = {"tensorrt_llm": "1.2.1.post1", "gpu": "A100", "sm": 80}
    check_machine(planned, here)
    with pytest.raises(Refused, match=reason):
        check_machine(planned, here | other)


def test_check_engine_survives_any_manifest(engine: Path, machine: Machine) -> None:
    path = engine / "enginesmith.json"
    manifest = json.loads(path.read_text())
    for ranks in ([1], [{"rank": [1]}], "x", [{"rank": 0, "sha256": 5}]):
        path.write_text(json.dumps(manifest | {"ranks": ranks}))
        assert "differs" in enginesmith("check-engine", engine, env=machine, expect=1).stderr
    large = [{"activations": 2**40, "reserve": 0}]
    path.write_text(json.dumps(manifest | {"plan": {"memory": large}}))
    assert "rank 0 takes 1024.00 GiB" in enginesmith("check-engine", engine, env=machine, expect=1).stderr
    path.write_text(json.dumps(manifest))
    config = engine / "config.json"
    config.write_text(config.read_text() + " ")
    assert "config.json: differs" in enginesmith("check-engine", engine, env=machine, expect=1).stderr


def test_pipes_are_not_read(folders: Words, tmp_path: Path) -> None:
    for name in ("enginesmith.json", "config.json"):
        path = tmp_path / "ck" / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        words = ["build", *folders, "--plan_only", "--gpu", "A100"]
        assert "not a regular file" in enginesmith(*words, expect=2).stderr
        path.unlink()


def test_files_outside_are_not_read(folders: Words, tmp_path: Path) -> None:
    (tmp_path / "ck" / "enginesmith.json").write_text(json.dumps({"files": {"/etc/passwd": "00"}}))
    failed = enginesmith("build", *folders, "--plan_only", "--gpu", "A100", expect=2)
    assert "is no file of a checkpoint" in failed.stderr


def test_build_engine_refuses_another_gpu_or_release(folders: Words, machine: Machine, tmp_path: Path) -> None:
    enginesmith("build", *folders, "--plan_only", "--gpu", "L4", "--release", "1.1")
    out = tmp_path / "out"
    words = [sys.executable, out / "build_engine.py", "--plan", out, "--checkpoint_dir", tmp_path / "ck"]
    done = subprocess.run([*words, "--output_dir", out / "e"], env=machine, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the plan is for TensorRT-LLM 1.1.0, here is 1.2.1" in done.stderr


def test_check_engine_says_why_not(engine: Path, machine: Machine, tmp_path: Path) -> None:
    def reasons(*words: object, env: Machine | None = None) -> str:
        verdict = json.loads(enginesmith("check-engine", engine, *words, "--json", env=env, expect=1).stdout)
        assert verdict["ok"] is False
        return "; ".join(verdict["reasons"])

    assert "TensorRT-LLM is not installed here" in reasons()
    assert "there is no NVIDIA GPU to be seen here" in reasons()
    assert "GPU 0 is H100 (SM 90), the engine is for Fake A100 (SM 80)" in reasons("--gpu", "H100", env=machine)
    assert "TensorRT-LLM is 1.1.0 in release 1.1.0; the engine needs 1.2.1" in reasons("--release", "1.1", env=machine)
    assert "TensorRT is 10.13.3 in release 1.1.0" in reasons("--release", "1.1", env=machine)
    alone = fake_machine(tmp_path / "one", gpus=1)
    assert "1 GPUs here; its 2 ranks need one each" in reasons(env=alone)
    (engine / "rank1.engine").write_bytes(b"engine of rank 2")
    assert "rank1.engine: differs" in reasons(env=machine)
    (engine / "enginesmith.json").unlink()
    assert "nothing says for which GPU" in reasons(env=machine)
    (engine / "rank1.engine").unlink()
    assert "rank1.engine is missing" in enginesmith("check-engine", engine, env=machine, expect=2).stderr


def test_check_engine_for_another_machine(engine: Path) -> None:
    assert "yes" in enginesmith("check-engine", engine, "--gpu", "A100", "--release", "1.2.1").stdout
