from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ..builder import BuildConfig
from ..models import PretrainedConfig


class Engine:
    def __init__(self, rank: int, config: dict[str, Any]):
        self.rank, self.config = rank, config

    def save(self, engine_dir: str) -> None:
        folder = Path(engine_dir)
        if self.rank == 0:
            (folder / "config.json").write_text(json.dumps(self.config))
        (folder / f"rank{self.rank}.engine").write_bytes(b"engine of rank %d" % self.rank)
        Path(self.config["build_config"]["output_timing_cache"]).write_bytes(b"timings")


def build_model(
    build_config: BuildConfig,
    rank: int = 0,
    ckpt_dir: str | None = None,
    model_config: PretrainedConfig | None = None,
    model_cls: Any = None,
    dry_run: bool = False,
    **kwargs: Any,
) -> Engine:
    assert model_config is not None
    assert set(kwargs) >= {"logits_dtype", "strip_plan", "refit", "lora_dir", "lora_ckpt_source", "max_lora_rank"}
    print(f"building rank {rank} on GPU {os.environ['CUDA_VISIBLE_DEVICES']}", flush=True)
    time.sleep(float(os.environ.get("FAKE_SLOW", "0")))
    if os.environ.get("FAKE_FAIL_RANK") == str(rank):
        raise RuntimeError("out of tactics")
    pretrained = model_config.values
    return Engine(rank, {"version": "1.2.1", "pretrained_config": pretrained, "build_config": build_config.values})
