"""Checkpoints and machines for the tests of builds, made without converting anything."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from enginesmith.convert.files.disk import sha256

FAKE = Path(__file__).parent / "fake_tensorrt_llm"
CONFIG: dict[str, Any] = {
    "architecture": "SomeForCausalLM",
    "dtype": "float16",
    "logits_dtype": "float32",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_size": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}


def write_checkpoint(
    folder: Path, algorithm: str | None = None, kv_cache: str | None = None, tp: int = 1, pp: int = 1, **changes: Any
) -> Path:
    """A checkpoint folder of an 8B shape whose rank files hold one number each."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {
        "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp},
        "quantization": {"quant_algo": algorithm, "kv_cache_quant_algo": kv_cache},
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    for rank in range(tp * pp):
        save_file({"one": np.ones(1, np.float32)}, folder / f"rank{rank}.safetensors")
    return folder


def write_manifest(folder: Path, **changes: Any) -> None:
    """An enginesmith.json beside a checkpoint that records the files as they are."""
    files = {path.name: sha256(path) for path in folder.iterdir() if path.name != "enginesmith.json"}
    (folder / "enginesmith.json").write_text(json.dumps({"files": files} | changes))


def fake_machine(folder: Path, gpus: int = 2, name: str = "NVIDIA A100-SXM4-80GB", sm: str = "8.0") -> dict[str, str]:
    """The environment of a machine with TensorRT-LLM 1.2.1 and some GPUs, both pretended."""
    folder.mkdir(parents=True, exist_ok=True)
    smi = folder / "nvidia-smi"
    listed = "\\n".join(f"GPU {index}: {name}" for index in range(gpus))
    queried = "\\n".join(f"{index}, GPU-{index}, {name}, {sm}, 81920, 580.1" for index in range(gpus))
    smi.write_text(f"#!/bin/sh\ncase $1 in --list-gpus) printf '{listed}\\n';; *) printf '{queried}\\n';; esac\n")
    smi.chmod(smi.stat().st_mode | stat.S_IXUSR)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    modules = os.pathsep.join(filter(None, [str(FAKE), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PATH": path, "PYTHONPATH": modules, "PYTHONDONTWRITEBYTECODE": "1"}


def enginesmith(*words: object, env: dict[str, str] | None = None, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-c", "from enginesmith.cli.main import main; main()", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == expect, done.stderr
    if expect == 2:
        assert done.stderr.startswith("enginesmith: ")
        assert len(done.stderr.strip().splitlines()) == 1
    return done
