"""What a run will make, without its numbers: folders of which later steps can say now what they will refuse.

Sketches are files like the real ones: TensorRT-LLM's configuration, tensors' headers and sizes; weights are holes that
take no room.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..convert.errors import InputError
from ..convert.files.disk import MANIFEST, sha256, write_json
from ..convert.files.tensors import TensorFile
from ..convert.job.conversion import Job
from ..convert.targets.trtllm.layout import rank_tensors
from ..convert.targets.trtllm.target import TensorRTLLM
from .plan import Plan

# The SHA-256 of what has no values yet.
UNKNOWN = "0" * 64


@contextmanager
def sketched(made: Path, fill: Callable[[Path], None]) -> Iterator[Path]:
    """A folder that is filled and used instead of the one that will be made; refusals speak of that one."""
    with tempfile.TemporaryDirectory(prefix="enginesmith-") as scratch:
        folder = Path(scratch) / made.name
        folder.mkdir()
        try:
            fill(folder)
            yield folder
        except InputError as error:
            raise InputError(str(error).replace(str(folder), str(made))) from None


def checkpoint(job: Job, folder: Path) -> None:
    """Write the checkpoint that a conversion will make, its tensors without values."""
    files, target = {}, job.makings[0].target
    assert isinstance(target, TensorRTLLM)
    for name, content in target.configs().items():
        write_json(folder / name, content)
        files[name] = sha256(folder / name)
    for rank in range(target.mapping.world_size):
        name = f"rank{rank}.safetensors"
        tensors = rank_tensors(target.precision, target.mapping, rank, target.engine)
        TensorFile(folder / name, tensors, room=False).file.close()
        files[name] = UNKNOWN
    write_json(folder / MANIFEST, job.makings[0].manifest() | {"files": files})


def engine(plan: Plan, folder: Path) -> None:
    """Write the engine that a plan will build: what TensorRT-LLM states of it, and a byte for each rank."""
    pretrained = plan.checkpoint.config
    config: dict[str, Any] = {
        "version": plan.release.version,
        "pretrained_config": pretrained,
        "build_config": plan.build_config,
    }
    write_json(folder / "config.json", config)
    for rank in range(plan.checkpoint.world_size):
        (folder / f"rank{rank}.engine").write_bytes(b"\0")
    write_json(folder / MANIFEST, {"plan": plan.as_json()})
