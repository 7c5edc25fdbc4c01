"""Can this engine run here? TensorRT answers with an opaque error or not at all; this answers beforehand.

An engine loads only in the TensorRT that built it and on the GPU generation it was built on; its plugins read their
fields by position, so TensorRT-LLM must be the same release.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ..convert.errors import InputError
from ..convert.files import MANIFEST, read_json, section, sha256
from . import gpus
from .build_engine import same_release
from .engine_folder import EngineFolder
from .engines import installed_release
from .gpus import GPU
from .memory import gibibytes


@dataclass(frozen=True)
class Machine:
    """Where an engine is to run.

    Attributes:
        tensorrt_llm, tensorrt: versions, or None where they are not installed.
        gpus: its GPUs.
    """

    tensorrt_llm: str | None
    tensorrt: str | None
    gpus: list[GPU]


def this_machine() -> Machine:
    try:
        tensorrt = metadata.version("tensorrt")
    except metadata.PackageNotFoundError:
        tensorrt = None
    return Machine(installed_release(), tensorrt, [here.gpu for here in gpus.present()])


def reasons_against(engine: EngineFolder, machine: Machine) -> list[str]:
    """Everything that keeps an engine from running on a machine; an empty list means that it can.

    Raises:
        InputError: the engine's manifest is not readable.
    """
    path = engine.folder / MANIFEST
    if not path.exists():
        known = versions(engine.version, None, machine) + enough_gpus(engine, machine)
        return [*known, f"no {MANIFEST} beside it: nothing says for which GPU and TensorRT it was built"]
    manifest = read_json(path)
    built = section(manifest, "machine")
    sm = built.get("sm")
    if not isinstance(sm, int) or not isinstance(built.get("tensorrt"), str):
        raise InputError(f"{path}: no machine.sm and machine.tensorrt in it; is it the manifest of an engine?")
    reasons = changed_files(engine, manifest)
    reasons += versions(engine.version, built["tensorrt"], machine)
    for index, gpu in enumerate(machine.gpus[: engine.world_size]):
        if gpu.sm != sm:
            reasons.append(f"GPU {index} is {gpu.name} (SM {gpu.sm}), the engine is for {built.get('gpu')} (SM {sm})")
    reasons += enough_gpus(engine, machine)
    for rank, gpu in enumerate(machine.gpus[: engine.world_size]):
        size = (engine.folder / f"rank{rank}.engine").stat().st_size
        if size > gpu.memory:
            reasons.append(f"rank {rank} is {gibibytes(size)}, GPU {rank} ({gpu.name}) has {gibibytes(gpu.memory)}")
    return reasons


def changed_files(engine: EngineFolder, manifest: dict[str, Any]) -> list[str]:
    """Rank files that are not the ones that were built."""
    ranks = manifest.get("ranks")
    hashes = {entry.get("rank"): entry.get("sha256") for entry in ranks} if isinstance(ranks, list) else {}
    return [
        f"rank{rank}.engine: differs from the one {MANIFEST} recorded"
        for rank in range(engine.world_size)
        if sha256(engine.folder / f"rank{rank}.engine") != hashes.get(rank)
    ]


def versions(tensorrt_llm: str, tensorrt: str | None, machine: Machine) -> list[str]:
    reasons = []
    if machine.tensorrt_llm is None:
        reasons.append(f"TensorRT-LLM is not installed here; the engine needs {tensorrt_llm}")
    elif not same_release(machine.tensorrt_llm, tensorrt_llm):
        reasons.append(f"TensorRT-LLM {machine.tensorrt_llm} is installed here; the engine needs {tensorrt_llm}")
    if tensorrt and machine.tensorrt and not same_release(machine.tensorrt, tensorrt):
        reasons.append(f"TensorRT {machine.tensorrt} is installed here; the engine needs {tensorrt}")
    return reasons


def enough_gpus(engine: EngineFolder, machine: Machine) -> list[str]:
    if not machine.gpus:
        return ["there is no NVIDIA GPU here (nvidia-smi lists none)"]
    if len(machine.gpus) < engine.world_size:
        return [f"{len(machine.gpus)} GPUs here; its {engine.world_size} ranks need one each"]
    return []
