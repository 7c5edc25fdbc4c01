"""Can this engine run here? TensorRT answers with an opaque error or not at all; this answers beforehand.

An engine loads only in the TensorRT that built it and on the GPU generation it was built on; its plugins read their
fields by position, so TensorRT-LLM must be the same release.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata, util
from typing import Any

from ..convert.errors import InputError, shown
from ..convert.files.disk import MANIFEST, is_there, read_json
from ..convert.files.reader import Reader
from . import gpus
from .build_engine import same_release
from .engine_folder import EngineFolder
from .engines import changed_files, installed_release
from .gpus import GPU
from .memory import gibibytes

MOST_MEMORY = 2**50  # bytes
# Names under which NVIDIA has published TensorRT's Python package.
TENSORRT = ("tensorrt", "tensorrt_cu13", "tensorrt_cu12", "tensorrt-cu13", "tensorrt-cu12")


@dataclass(frozen=True)
class Machine:
    """Where an engine is to run.

    Attributes:
        tensorrt_llm, tensorrt: versions, or None where they are not installed.
        gpus: those that a process would see.
        name: how to speak of it.
    """

    tensorrt_llm: str | None
    tensorrt: str | None
    gpus: list[GPU]
    name: str = "here"


def this_machine() -> Machine:
    found = (distribution for distribution in TENSORRT if util.find_spec("tensorrt") and has(distribution))
    tensorrt = next((metadata.version(distribution) for distribution in found), None)
    return Machine(installed_release(), tensorrt, [here.gpu for here in gpus.present()])


def has(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def reasons_against(engine: EngineFolder, machine: Machine) -> list[str]:
    """Everything that keeps an engine from running on a machine; an empty list means that it can.

    Raises:
        InputError: the engine's manifest is not readable.
    """
    path = engine.folder / MANIFEST
    if not is_there(path):
        known = versions(engine.version, None, machine) + enough_gpus(engine, machine)
        return [*known, f"no {MANIFEST} beside it: nothing says for which GPU and TensorRT it was built"]
    manifest = read_json(path)
    built = Reader(manifest, str(path)).section("machine").values
    sm, model = built.get("sm"), built.get("gpu")
    model = model if isinstance(model, str) and len(model) < 100 else shown(model)
    if not isinstance(sm, int) or isinstance(sm, bool) or not isinstance(built.get("tensorrt"), str):
        raise InputError(f"{path}: no machine.sm and machine.tensorrt in it; is it the manifest of an engine?")
    reasons = changed_files(engine, manifest)
    reasons += versions(engine.version, built["tensorrt"], machine)
    for index, gpu in enumerate(machine.gpus[: engine.world_size]):
        if gpu.sm != sm:
            reasons.append(f"GPU {index} is {gpu.name} (SM {gpu.sm}), the engine is for {model} (SM {sm})")
    reasons += enough_gpus(engine, machine)
    for rank, gpu in enumerate(machine.gpus[: engine.world_size]):
        needed = memory_needed(engine, manifest, rank)
        if gpu.memory and needed > gpu.memory:
            reasons.append(
                f"rank {rank} takes {gibibytes(needed)}, GPU {rank} ({gpu.name}) has {gibibytes(gpu.memory)}"
            )
    return reasons


def warnings_about(engine: EngineFolder, machine: Machine) -> list[str]:
    """What lets an engine run on a machine, but not as it was built for: another GPU model of the same generation.

    Raises:
        InputError: the engine's manifest is not readable.
    """
    path = engine.folder / MANIFEST
    built = Reader(read_json(path) if is_there(path) else {}, MANIFEST).section("machine").values
    model, sm = built.get("gpu"), built.get("sm")
    if not isinstance(model, str):
        return []
    return [
        f"GPU {index} is {gpu.name}, the engine was built and tuned on {shown(model)}; it runs, perhaps slower"
        for index, gpu in enumerate(machine.gpus[: engine.world_size])
        if gpu.sm == sm and not gpus.same_model(model, gpu.name)
    ]


def memory_needed(engine: EngineFolder, manifest: dict[str, Any], rank: int) -> int:
    """Bytes of GPU memory before the first request: the engine, and what its plan says besides."""
    size = (engine.folder / f"rank{rank}.engine").stat().st_size
    planned = Reader(manifest, MANIFEST).section("plan").values.get("memory")
    if not isinstance(planned, list) or rank >= len(planned) or not isinstance(planned[rank], dict):
        return size
    besides = Reader(planned[rank], MANIFEST, f"plan.memory[{rank}].")
    return size + sum(besides.integer(key, 0, least=0, largest=MOST_MEMORY) for key in ("activations", "reserve"))


def versions(tensorrt_llm: str, tensorrt: str | None, machine: Machine) -> list[str]:
    reasons = []
    for name, needed, found in (
        ("TensorRT-LLM", tensorrt_llm, machine.tensorrt_llm),
        ("TensorRT", tensorrt, machine.tensorrt),
    ):
        if needed and found is None:
            reasons.append(f"{name} is not installed {machine.name}; the engine needs {needed}")
        elif needed and found and not same_release(found, needed):
            reasons.append(f"{name} is {found} {machine.name}; the engine needs {needed}")
    return reasons


def enough_gpus(engine: EngineFolder, machine: Machine) -> list[str]:
    if not machine.gpus:
        return ["there is no NVIDIA GPU to be seen here"]
    if len(machine.gpus) < engine.world_size:
        return [f"{len(machine.gpus)} GPUs here; its {engine.world_size} ranks need one each"]
    return []
