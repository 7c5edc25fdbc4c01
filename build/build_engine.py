"""Builds the engines of a plan where TensorRT-LLM is installed; a file that runs by itself.

    python build_engine.py --plan DIR --checkpoint_dir DIR --output_dir DIR

It imports nothing of enginesmith, so a copy of it beside a plan is all that NVIDIA's container needs. Every rank is
built by a process of its own that sees one GPU; ranks that are finished are not built again. When all are there,
enginesmith.json says of what, by what and for which GPU they were made.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "enginesmith.json"
TIMING_CACHE = "model.cache"
BUILT, FAILED, UNUSABLE = 0, 1, 2
TAIL = 12


class Refused(Exception):
    """This machine cannot build the plan; one line that says why."""


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the engines of an enginesmith plan.")
    parser.add_argument("--plan", type=Path, required=True, help="folder with plan.json and build_config.json")
    parser.add_argument("--checkpoint_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True, help="engine folder; finished ranks in it are kept")
    parser.add_argument("--workers", type=int, help="ranks built at once; default the plan's, or one a GPU")
    parser.add_argument("--rank", type=int, help="build this rank alone, in this process")
    options = parser.parse_args(words)
    if options.workers is not None and options.workers < 1:
        parser.error("--workers must be at least 1")
    signal.signal(signal.SIGTERM, stopped)
    try:
        if options.rank is not None:
            build_rank(options.plan, options.checkpoint_dir, options.output_dir, options.rank)
            return BUILT
        return build_all(options.plan, options.checkpoint_dir, options.output_dir, options.workers)
    except (Refused, OSError, ValueError) as reason:
        print(f"build_engine: {reason}", file=sys.stderr)
        return UNUSABLE


def stopped(number: int, frame: object) -> None:
    """SIGTERM ends a build the way Ctrl-C does: the ranks at work are stopped, finished ones kept."""
    raise KeyboardInterrupt


def build_all(plan_folder: Path, checkpoint: Path, output: Path, workers: int | None = None) -> int:
    """Build every rank that is not finished, as many at once as there are GPUs; then write the manifest.

    Returns:
        the exit code: 0, or 1 if a rank failed.
    """
    plan = read_json(plan_folder / "plan.json")
    (output / "logs").mkdir(parents=True, exist_ok=True)
    free = visible_gpus()[: workers or plan.get("workers")]
    if not free:
        raise Refused("CUDA_VISIBLE_DEVICES hides every GPU")
    with only_build(output / "logs"):
        return build_ranks(plan, plan_folder, checkpoint, output, free)


def build_ranks(plan: dict[str, Any], plan_folder: Path, checkpoint: Path, output: Path, free: list[str]) -> int:
    """Build what is missing on these GPUs, and write the manifest; the exit code."""
    ranks = plan["checkpoint"]["tp_size"] * plan["checkpoint"]["pp_size"]
    waiting = [rank for rank in range(ranks) if finished(output, rank, plan) is None]
    for rank in sorted(set(range(ranks)) - set(waiting)):
        say(f"rank {rank}: finished before")
    remove_others(output, set(range(ranks)) - set(waiting))
    running: dict[int, tuple[subprocess.Popen[bytes], str, float]] = {}
    try:
        while waiting or running:
            while waiting and free:
                rank, gpu = waiting.pop(0), free.pop(0)
                running[rank] = (start(plan_folder, checkpoint, output, rank, gpu), gpu, time.monotonic())
                say(f"rank {rank}: building on GPU {gpu}, log in {log_file(output, rank)}")
            for rank, (process, gpu, since) in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[rank]
                free.append(gpu)
                if code:
                    say(f"rank {rank}: failed with code {code}; the end of {log_file(output, rank)}:")
                    say(tail(log_file(output, rank)))
                    return FAILED
                record = finished(output, rank, plan)
                if record is None:
                    say(f"rank {rank}: ended without an engine; see {log_file(output, rank)}")
                    return FAILED
                say(f"rank {rank}: {record['bytes'] / 2**30:.2f} GiB in {time.monotonic() - since:.0f} s")
            time.sleep(0.05)
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.wait()
    return write_manifest(plan, output, ranks)


@contextmanager
def only_build(folder: Path) -> Iterator[None]:
    """Hold a folder against another build of the same engine."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Refused(f"another build is at work in {folder.parent}") from None
    finally:
        os.close(lock)


def start(plan: Path, checkpoint: Path, output: Path, rank: int, gpu: str) -> subprocess.Popen[bytes]:
    """The process that builds one rank and sees one GPU; its output goes to the rank's log."""
    log = log_file(output, rank)
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, os.path.abspath(__file__), "--plan", str(plan), "--checkpoint_dir", str(checkpoint)]
    command += ["--output_dir", str(output), "--rank", str(rank)]
    with log.open("wb") as file:
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
        parent = {"ENGINESMITH_BUILD": str(os.getpid())}
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment | parent)


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it is gone, however that ended."""
    parent = os.environ.get("ENGINESMITH_BUILD")
    if parent is None:
        return
    die_with_parent = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(die_with_parent, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(FAILED)


def build_rank(plan_folder: Path, checkpoint: Path, output: Path, rank: int) -> None:
    """Build one rank in this process, by the steps of trtllm-build, and record it."""
    end_with_parent()
    plan = read_json(plan_folder / "plan.json")
    machine = this_machine()
    check_machine(plan, machine)
    from tensorrt_llm.builder import BuildConfig
    from tensorrt_llm.commands.build import build_model
    from tensorrt_llm.logger import logger
    from tensorrt_llm.models import PretrainedConfig

    logger.set_level(plan["log_level"])
    since = time.monotonic()
    engine = build_model(
        BuildConfig.from_json_file(str(rank_config(plan_folder, output, rank))),
        rank,
        str(checkpoint),
        PretrainedConfig.from_json_file(str(checkpoint / "config.json")),
        model_cls=None,
        logits_dtype=plan["logits_dtype"],
        strip_plan=plan["strip_plan"],
        refit=False,
        lora_dir=None,
        lora_ckpt_source="hf",
        lora_target_modules=None,
        max_lora_rank=64,
    )
    engine.save(str(output))
    path = engine_file(output, rank)
    sync(path)
    record = {
        "rank": rank,
        "seconds": round(time.monotonic() - since, 1),
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "plan": digest(plan),
        "machine": machine,
        "config": sha256(output / "config.json") if rank == 0 else None,
    }
    write_json(record_file(output, rank), record)


def rank_config(plan_folder: Path, output: Path, rank: int) -> Path:
    """build_config.json with the timing cache beside the engine, read where an earlier rank left one."""
    config = read_json(plan_folder / "build_config.json")
    cache = output / TIMING_CACHE
    config.setdefault("output_timing_cache", str(cache))
    if cache.is_file():
        config.setdefault("input_timing_cache", str(cache))
    path = output / "logs" / f"rank{rank}.build_config.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, config)
    return path


def this_machine() -> dict[str, Any]:
    """Versions and the GPU that this process sees.

    Raises:
        Refused: TensorRT-LLM or a GPU is missing.
    """
    try:
        import tensorrt
        import tensorrt_llm
        import torch
    except ImportError as error:
        raise Refused(f"TensorRT-LLM cannot be imported here ({error}); use NVIDIA's container") from None
    if not torch.cuda.is_available():
        raise Refused("no CUDA GPU is visible; an engine is built on the kind of GPU that it runs on")
    major, minor = torch.cuda.get_device_capability(0)
    return {
        "tensorrt_llm": tensorrt_llm.__version__,
        "tensorrt": tensorrt.__version__,
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name(0),
        "sm": 10 * major + minor,
    }


def check_machine(plan: dict[str, Any], machine: dict[str, Any]) -> None:
    """Raise Refused unless this is the release and the GPU generation of the plan."""
    if not same_release(machine["tensorrt_llm"], plan["release"]):
        raise Refused(f"the plan is for TensorRT-LLM {plan['release']}, here is {machine['tensorrt_llm']}; plan again")
    if machine["sm"] != plan["gpu"]["sm"]:
        raise Refused(
            f"the plan is for {plan['gpu']['name']} (SM {plan['gpu']['sm']}), here is {machine['gpu']} "
            f"(SM {machine['sm']}); build on that GPU, or plan again for this one"
        )


def same_release(installed: str, planned: str) -> bool:
    """0.17.0.post1 is 0.17.0, 1.2.1 is not 1.2.0."""
    return installed.split(".")[:3] == planned.split(".")[:3]


def finished(output: Path, rank: int, plan: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a rank that was built to its end by this plan, its files as they were then."""
    try:
        record = record_of(output, rank)
        whole = record["plan"] == digest(plan) and record["sha256"] == sha256(engine_file(output, rank))
        if rank == 0:
            whole = whole and record["config"] == sha256(output / "config.json")
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
    return record if whole else None


def record_of(output: Path, rank: int) -> dict[str, Any]:
    """What a finished rank left: a record of its own, or its entry in the manifest that took the records in."""
    if record_file(output, rank).exists():
        return read_json(record_file(output, rank))
    manifest = read_json(output / MANIFEST)
    shared = {"plan": manifest["plan_digest"], "machine": manifest["machine"], "config": manifest["config"]}
    return {**manifest["ranks"][rank], **shared}


def remove_others(output: Path, keep: set[int]) -> None:
    """Remove what another plan, or a rank that was not finished, left behind."""
    for path in [*output.glob("rank*.engine"), *output.glob("rank*.json"), *output.glob("rank*.safetensors")]:
        number = path.name.removeprefix("rank").split(".")[0].split("_")[0]
        if not (number.isdecimal() and int(number) in keep):
            path.unlink()


def write_manifest(plan: dict[str, Any], output: Path, ranks: int) -> int:
    """What the engines were made of, by and for, and each rank's hash, size and build time; the exit code."""
    records = [finished(output, rank, plan) for rank in range(ranks)]
    whole = [record for record in records if record is not None]
    if len(whole) < ranks:
        say("files changed while they were built; start again")
        return FAILED
    ranked = [{key: record[key] for key in ("rank", "seconds", "bytes", "sha256")} for record in whole]
    manifest = {"plan": plan, "plan_digest": digest(plan), "machine": whole[0]["machine"], "ranks": ranked}
    write_json(output / MANIFEST, manifest | {"config": whole[0]["config"]})
    for rank in range(ranks):
        record_file(output, rank).unlink(missing_ok=True)
    return BUILT


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES, one for each GPU that this process may use; "0" where they cannot be listed."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name and name != "-1"]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ["0"]
    return [str(index) for index, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU")] or ["0"]


def engine_file(output: Path, rank: int) -> Path:
    return output / f"rank{rank}.engine"


def record_file(output: Path, rank: int) -> Path:
    return output / f"rank{rank}.json"


def log_file(output: Path, rank: int) -> Path:
    return output / "logs" / f"rank{rank}.log"


def tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-TAIL:])


def digest(plan: dict[str, Any]) -> str:
    """What a finished rank must have been built by; how many ranks are built at once does not matter."""
    plan = {key: value for key, value in plan.items() if key not in ("workers", "log_level")}
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def sync(path: Path) -> None:
    """Make a file durable before a record vouches for it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total.update(block)
    return total.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
