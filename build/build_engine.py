"""Builds the engines of a plan where TensorRT-LLM is installed; a file that runs by itself.

    python build_engine.py --plan DIR --checkpoint_dir DIR --output_dir DIR

It imports nothing of enginesmith, so a copy of it beside a plan is all that NVIDIA's container needs. Every rank is
built by a process of its own that sees one GPU; ranks that are finished are not built again. When all are there,
enginesmith.json says of what, by what and for which GPU they were made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
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
    parser.add_argument("--workers", type=int, help="ranks built at once; default one a GPU")
    parser.add_argument("--rank", type=int, help="build this rank alone, in this process")
    options = parser.parse_args(words)
    try:
        if options.rank is not None:
            build_rank(options.plan, options.checkpoint_dir, options.output_dir, options.rank)
            return BUILT
        return build_all(options.plan, options.checkpoint_dir, options.output_dir, options.workers)
    except Refused as reason:
        print(f"build_engine: {reason}", file=sys.stderr)
        return UNUSABLE


def build_all(plan_folder: Path, checkpoint: Path, output: Path, workers: int | None = None) -> int:
    """Build every rank that is not finished, as many at once as there are GPUs; then write the manifest.

    Returns:
        the exit code: 0, or 1 if a rank failed.
    """
    plan = read_json(plan_folder / "plan.json")
    output.mkdir(parents=True, exist_ok=True)
    ranks = plan["checkpoint"]["tp_size"] * plan["checkpoint"]["pp_size"]
    waiting = [rank for rank in range(ranks) if finished(output, rank, plan) is None]
    for rank in sorted(set(range(ranks)) - set(waiting)):
        say(f"rank {rank}: finished before")
    remove_others(output, set(range(ranks)) - set(waiting))
    free = visible_gpus()[:workers]
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
    write_manifest(plan, output, ranks)
    return BUILT


def start(plan: Path, checkpoint: Path, output: Path, rank: int, gpu: str) -> subprocess.Popen[bytes]:
    """The process that builds one rank and sees one GPU; its output goes to the rank's log."""
    log = log_file(output, rank)
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, os.path.abspath(__file__), "--plan", str(plan), "--checkpoint_dir", str(checkpoint)]
    command += ["--output_dir", str(output), "--rank", str(rank)]
    with log.open("wb") as file:
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


def build_rank(plan_folder: Path, checkpoint: Path, output: Path, rank: int) -> None:
    """Build one rank in this process, by the steps of trtllm-build, and record it."""
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
    record = {
        "rank": rank,
        "seconds": round(time.monotonic() - since, 1),
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "plan": digest(plan),
        "machine": machine,
    }
    write_json(record_file(output, rank), record)


def rank_config(plan_folder: Path, output: Path, rank: int) -> Path:
    """build_config.json with the timing cache beside the engine; rank 0 writes it, all read what is there."""
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
    """The record of a rank that was built to its end by this plan."""
    try:
        record = read_json(record_file(output, rank))
        whole = record["plan"] == digest(plan) and record["bytes"] == engine_file(output, rank).stat().st_size
    except (OSError, ValueError, KeyError):
        return None
    return record if whole else None


def remove_others(output: Path, keep: set[int]) -> None:
    """Remove what another plan, or a rank that was not finished, left behind."""
    for path in [*output.glob("rank*.engine"), *output.glob("rank*.json"), *output.glob("rank*.safetensors")]:
        number = path.name.removeprefix("rank").split(".")[0].split("_")[0]
        if not (number.isdecimal() and int(number) in keep):
            path.unlink()


def write_manifest(plan: dict[str, Any], output: Path, ranks: int) -> None:
    """What the engines were made of, by and for, and each rank's hash, size and build time."""
    records = [read_json(record_file(output, rank)) for rank in range(ranks)]
    ranked = [{key: record[key] for key in ("rank", "seconds", "bytes", "sha256")} for record in records]
    manifest = {"plan": plan, "plan_digest": digest(plan), "machine": records[0]["machine"], "ranks": ranked}
    write_json(output / MANIFEST, manifest)
    for rank in range(ranks):
        record_file(output, rank).unlink()


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES, one for each GPU that this process may use; "0" where none can be listed."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name] or ["0"]
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
    """What a finished rank must have been built by."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


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
