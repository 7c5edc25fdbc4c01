"""A checkpoint in an engine's place: what its engine's config.json would state, before there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..convert.errors import InputError
from ..convert.files.disk import is_there, read_json, shown_path
from ..convert.files.reader import Reader
from ..convert.targets.trtllm.manifest import CONFIG
from .build_config import build_config
from .checkpoint_folder import CheckpointFolder
from .engine_folder import EngineFolder
from .releases import Release


class Preview(EngineFolder):
    """The engine that a release would build of a checkpoint by default; one process executes all of its ranks.

    Raises:
        InputError: no checkpoint whose family and quantization this project executes.
    """

    def __init__(self, folder: str | Path, release: Release, flag: str = "--preview"):
        path = Path(folder) / CONFIG
        if is_there(path) and "architectures" in read_json(path):
            raise InputError(
                f"{flag}: {shown_path(Path(folder))} is a Hugging Face folder; a preview stands in for the engine of a "
                "TensorRT-LLM checkpoint (enginesmith generate speaks for others)"
            )
        checkpoint = CheckpointFolder(folder, flag)
        if checkpoint.precision is None or checkpoint.family is None or not checkpoint.family.predicts_tokens:
            what = f"{checkpoint.architecture} under {checkpoint.algorithm or 'no quantization'}"
            raise InputError(f"{flag}: {shown_path(Path(folder))} is {what}, which is not executed here")
        self.folder = checkpoint.folder
        config = {
            "version": release.version,
            "pretrained_config": checkpoint.config,
            "build_config": build_config(checkpoint, release, {}),
        }
        self.read(Reader(config, str(self.folder / CONFIG)))
        self.world_size = 1
        self.planned: dict[str, Any] = {
            "checkpoint": {
                "sliding_window": checkpoint.sliding_window,
                "attention_windows": list(checkpoint.windows) or None,
            }
        }

    def plan(self) -> Reader:
        return Reader({"plan": self.planned}, CONFIG).section("plan")
