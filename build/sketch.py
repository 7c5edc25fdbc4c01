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

from ..convert.checkpoint import RankFile
from ..convert.converter import Job
from ..convert.errors import InputError
from ..convert.files import MANIFEST, write_json
from ..convert.layout import rank_tensors
from .plan import Plan


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
    for name, content in job.configs().items():
        write_json(folder / name, content)
    for rank in range(job.mapping.world_size):
        tensors = rank_tensors(job.precision, job.mapping, rank, job.quantizer.dtype)
        RankFile(folder / f"rank{rank}.safetensors", tensors, room=False).file.close()
    write_json(folder / MANIFEST, job.manifest([]))


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
