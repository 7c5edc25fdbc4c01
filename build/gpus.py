"""GPUs by name: their SM number and memory, as listed or as nvidia-smi reports them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from ..convert.errors import InputError

GIB = 2**30


@dataclass(frozen=True)
class GPU:
    """One kind of GPU.

    Attributes:
        sm: compute capability as one number (80 for 8.0).
        memory: bytes.
    """

    name: str
    sm: int
    memory: int


KNOWN = {
    gpu.name: gpu
    for gpu in (
        GPU("T4", 75, 16 * GIB),
        GPU("A100-40GB", 80, 40 * GIB),
        GPU("A100-80GB", 80, 80 * GIB),
        GPU("A30", 80, 24 * GIB),
        GPU("A10", 86, 24 * GIB),
        GPU("A10G", 86, 24 * GIB),
        GPU("A40", 86, 48 * GIB),
        GPU("RTX-A6000", 86, 48 * GIB),
        GPU("RTX-3090", 86, 24 * GIB),
        GPU("L4", 89, 24 * GIB),
        GPU("L40", 89, 48 * GIB),
        GPU("L40S", 89, 48 * GIB),
        GPU("RTX-4090", 89, 24 * GIB),
        GPU("RTX-6000-Ada", 89, 48 * GIB),
        GPU("H100", 90, 80 * GIB),
        GPU("H100-NVL", 90, 94 * GIB),
        GPU("H200", 90, 141 * GIB),
        GPU("GH200", 90, 96 * GIB),
        GPU("B200", 100, 180 * GIB),
        GPU("GB200", 100, 186 * GIB),
        GPU("B300", 103, 288 * GIB),
        GPU("RTX-5090", 120, 32 * GIB),
        GPU("RTX-PRO-6000", 120, 96 * GIB),
    )
}
SHORT = {"A100": "A100-80GB", "H100-80GB": "H100", "A6000": "RTX-A6000", "4090": "RTX-4090", "5090": "RTX-5090"}


@dataclass(frozen=True)
class Present:
    """A GPU of this machine."""

    index: int
    gpu: GPU
    driver: str


def find(name: str) -> GPU:
    """A GPU by its name, in any case.

    Raises:
        InputError: a name that is not listed.
    """
    wanted = name.upper().replace(" ", "-").replace("_", "-").removeprefix("NVIDIA-")
    by_name = {known.upper(): gpu for known, gpu in KNOWN.items()}
    by_name |= {short.upper(): KNOWN[known] for short, known in SHORT.items()}
    if wanted not in by_name:
        raise InputError(f"--gpu {name!r} is not listed; use --sm and --gpu_memory, or one of: {', '.join(KNOWN)}")
    return by_name[wanted]


def target(name: str | None, sm: int | None, memory: float | None) -> GPU:
    """The GPU to plan for: named, described, or this machine's."""
    if name is not None:
        if sm is not None:
            raise InputError("--gpu and --sm say the same thing; give one of them")
        known = find(name)
        return known if memory is None else GPU(known.name, known.sm, int(memory * GIB))
    if sm is not None:
        if memory is None:
            raise InputError("--sm needs --gpu_memory GIB, to see what fits")
        return GPU(f"a GPU of SM {sm}", sm, int(memory * GIB))
    here = present()
    if not here:
        raise InputError(f"no NVIDIA GPU here; say for which to plan with --gpu: {', '.join(KNOWN)}")
    smallest = min((one.gpu for one in here), key=lambda gpu: gpu.memory)
    return smallest if memory is None else GPU(smallest.name, smallest.sm, int(memory * GIB))


def present() -> list[Present]:
    """The GPUs of this machine; none where nvidia-smi is missing or fails."""
    query = ["nvidia-smi", "--query-gpu=index,name,compute_cap,memory.total,driver_version"]
    try:
        answer = subprocess.run([*query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if answer.returncode:
        return []
    gpus = []
    for line in answer.stdout.splitlines():
        fields = [field.strip() for field in line.split(",")]
        try:
            index, name, capability, mebibytes, driver = fields
            major, minor = capability.split(".")
            gpu = GPU(name.removeprefix("NVIDIA "), 10 * int(major) + int(minor), int(mebibytes) * 2**20)
            gpus.append(Present(int(index), gpu, driver))
        except ValueError:
            continue
    return gpus
