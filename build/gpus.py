"""GPUs by name: their SM number and memory, as listed or as nvidia-smi reports them."""

from __future__ import annotations

import math
import os
import subprocess
from dataclasses import dataclass

from ..convert.errors import InputError

GIB = 2**30


@dataclass(frozen=True)
class GPU:
    """One kind of GPU.

    Attributes:
        sm: compute capability as one number (80 for 8.0).
        memory: bytes; 0 if unknown.
    """

    name: str
    sm: int
    memory: int


MIB = 2**20
# Memory as nvidia-smi reports it, which is less than the name says.
KNOWN = {
    name: GPU(name, sm, mebibytes * MIB)
    for name, sm, mebibytes in (
        ("T4", 75, 15360),
        ("A100-40GB", 80, 40960),
        ("A100-80GB", 80, 81920),
        ("A30", 80, 24576),
        ("A10", 86, 23028),
        ("A10G", 86, 23028),
        ("A40", 86, 46068),
        ("RTX-A6000", 86, 49140),
        ("RTX-3090", 86, 24576),
        ("L4", 89, 23034),
        ("L40", 89, 46068),
        ("L40S", 89, 46068),
        ("RTX-4090", 89, 24564),
        ("RTX-6000-Ada", 89, 49140),
        ("H100", 90, 81559),
        ("H100-NVL", 90, 95830),
        ("H200", 90, 143771),
        ("GH200", 90, 97871),
        ("B200", 100, 183359),
        ("GB200", 100, 189471),
        ("B300", 103, 275040),
        ("RTX-5090", 120, 32607),
        ("RTX-PRO-6000", 120, 97887),
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
    by_name = {plain(known): gpu for known, gpu in KNOWN.items()}
    by_name |= {plain(short): KNOWN[known] for short, known in SHORT.items()}
    wanted = plain(name).removeprefix("NVIDIA")
    if wanted not in by_name:
        raise InputError(f"--gpu {name!r} is not listed; use --sm and --gpu_memory, or one of: {', '.join(KNOWN)}")
    return by_name[wanted]


def plain(name: str) -> str:
    return "".join(letter for letter in name.upper() if letter.isalnum())


def same_model(one: str, other: str) -> bool:
    """Whether two names are of one GPU model; a listed one, "A100-80GB", is of each that has all of its words."""
    by_list = one in KNOWN or other in KNOWN
    return plain(one) == plain(other) or (by_list and listed(one) == listed(other) is not None)


def listed(name: str) -> str | None:
    """The listed GPU with the most words of a name, all of its words among them."""
    words = set(name.upper().replace("-", " ").split())
    fitting = [known for known in KNOWN if words >= set(known.upper().split("-"))]
    return max(fitting, key=lambda known: len(known.split("-")), default=None)


def target(name: str | None, sm: int | None, memory: float | None) -> GPU:
    """The GPU to plan for: named, described, or this machine's.

    Args:
        memory: GiB.
    """
    if memory is not None and not (math.isfinite(memory) and 1 <= memory <= 4096):
        raise InputError(f"--gpu_memory {memory}: GiB between 1 and 4096 are needed")
    if name is not None:
        if sm is not None:
            raise InputError("--gpu and --sm say the same thing; give one of them")
        known = find(name)
        return known if memory is None else GPU(f"{known.name} ({memory:g} GiB)", known.sm, int(memory * GIB))
    if sm is not None:
        if memory is None:
            raise InputError("--sm needs --gpu_memory GIB, to see what fits")
        return GPU(f"a GPU of SM {sm}", sm, int(memory * GIB))
    here = present()
    if not here:
        raise InputError(f"no NVIDIA GPU here; say for which to plan with --gpu: {', '.join(KNOWN)}")
    here = [one for one in here if one.gpu.memory] or here
    smallest = min((one.gpu for one in here), key=lambda gpu: gpu.memory)
    if memory is None and not smallest.memory:
        raise InputError(f"nvidia-smi does not report the memory of {smallest.name}; give --gpu_memory GIB")
    return smallest if memory is None else GPU(smallest.name, smallest.sm, int(memory * GIB))


def present() -> list[Present]:
    """The GPUs that a CUDA process here would see, in its order; none where nvidia-smi is missing or fails.

    Memory is 0 where it is not reported.
    """
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,compute_cap,memory.total,driver_version"]
    try:
        answer = subprocess.run(
            [*query, "--format=csv,noheader,nounits"], capture_output=True, text=True, errors="replace", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[field.strip() for field in line.split(",")] for line in answer.stdout.splitlines()]
    gpus = [found for row in rows if answer.returncode == 0 and (found := read_row(row)) is not None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [gpu for _, gpu in gpus]
    chosen = []
    for name in (word.strip() for word in visible.split(",")):
        match = next((gpu for uuid, gpu in gpus if name == str(gpu.index) or (name and uuid.startswith(name))), None)
        if match is None:
            break  # as CUDA does: nothing after a name that it does not know
        chosen.append(match)
    return chosen


def read_row(row: list[str]) -> tuple[str, Present] | None:
    """One line of nvidia-smi: (uuid, GPU); None if it is not one. Names may hold commas."""
    try:
        index, uuid, *name, capability, mebibytes, driver = row
        major, minor = capability.split(".")
        memory = int(mebibytes) * MIB if mebibytes.isdecimal() else 0
        gpu = GPU(",".join(name).removeprefix("NVIDIA "), 10 * int(major) + int(minor), memory)
        return uuid, Present(int(index), gpu, driver)
    except ValueError:
        return None
