"""A plan as a folder: plan.json, build_config.json, and build.sh, which builds it in NVIDIA's container."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from ..convert.files.disk import write_json
from ..convert.files.staging import MARK, RESUMABLE
from ..convert.targets.trtllm.releases import number
from . import build_engine
from .flags import BUILD, PLUGINS, SHAPES, Flag
from .plan import Plan

BUILD_SH = """#!/usr/bin/env bash
# Builds engines for TensorRT-LLM {release} on {gpu}.
#
#   bash build.sh [CHECKPOINT_DIR] [ENGINE_DIR]
#
# Where TensorRT-LLM is installed it is used, elsewhere NVIDIA's container (docker, and a GPU of that kind). Started
# again after a failure, it builds only the ranks that are missing. The same by hand, in that container:
#
#   {by_hand}
set -euo pipefail
plan=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
planned={checkpoint}
checkpoint=$(realpath -- "${{1:-$plan/$planned}}")
engine=$(realpath -m -- "${{2:-$plan/engine}}")
partial=$(dirname -- "$engine")/.$(basename -- "$engine").partial
making=$partial/$(basename -- "$engine")
image={image}

if [ -e "$engine" ]; then echo "build.sh: $engine exists; remove it or give another ENGINE_DIR" >&2; exit 2; fi
(CDPATH= cd -- "$checkpoint" && sha256sum --check --quiet "$plan/checkpoint.sha256") ||
    {{ echo "build.sh: $checkpoint is not the checkpoint that was planned" >&2; exit 2; }}
mkdir -p -- "$partial"
echo {resumable} > "$partial/{mark}"
mkdir -p -- "$making"
if python3 -c 'import tensorrt_llm' > /dev/null 2>&1; then
    python3 "$plan/build_engine.py" --plan "$plan" --checkpoint_dir "$checkpoint" --output_dir "$making"
else
    command -v docker > /dev/null || {{ echo "build.sh: neither TensorRT-LLM nor docker is here" >&2; exit 2; }}
    docker run --rm --gpus all --ipc host --ulimit memlock=-1 --user "$(id -u):$(id -g)" --env HOME=/tmp \\
        --volume "$plan:/plan:ro" --volume "$checkpoint:/checkpoint:ro" --volume "$making:/engine" "$image" \\
        python3 /plan/build_engine.py --plan /plan --checkpoint_dir /checkpoint --output_dir /engine
fi
mv -T -- "$making" "$engine"
rm -r -- "$partial"
echo "$engine"
"""


def write_plan(plan: Plan, folder: Path, final: Path) -> None:
    """Write a plan's files into a folder that exists; final is where it will lie, for the way to the checkpoint."""
    write_json(folder / "plan.json", plan.as_json())
    write_json(folder / "build_config.json", plan.build_config)
    (folder / "checkpoint.sha256").write_text(checksums(plan), encoding="utf-8")
    shutil.copyfile(build_engine.__file__, folder / "build_engine.py")
    script = BUILD_SH.format(
        release=plan.release.version,
        gpu=f"{plan.gpu.name} (SM {plan.gpu.sm})",
        by_hand=shlex.join(trtllm_build(plan, "CHECKPOINT_DIR", "ENGINE_DIR")),
        checkpoint=shlex.quote(os.path.relpath(os.path.realpath(plan.checkpoint.folder), os.path.realpath(final))),
        mark=MARK,
        resumable=RESUMABLE,
        image=shlex.quote(plan.release.build_image),
    )
    (folder / "build.sh").write_text(script, encoding="utf-8")
    (folder / "build.sh").chmod(0o755)


def checksums(plan: Plan) -> str:
    """Lines for sha256sum."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(plan.checkpoint.hashes().items()))


def trtllm_build(plan: Plan, checkpoint_dir: str, output_dir: str) -> list[str]:
    """The trtllm-build command line of a plan.

    Every flag is spelt out, for releases differ in defaults, and 1.2 ignores the plugin_config of --build_config. The
    quantization plugins have no flags: the checkpoint's quant_algo enables them.
    """
    words = ["trtllm-build", "--checkpoint_dir", checkpoint_dir, "--output_dir", output_dir]
    config = plan.build_config
    for flag in (*SHAPES, *BUILD, *PLUGINS):
        held = config["plugin_config"] if flag.into == "plugin" else config
        if flag.into == "run" or flag.name not in held or number(flag.since) > number(plan.release.version):
            continue
        words += flag_words(flag, held[flag.name])
    for name in ("logits_dtype", "log_level", "workers"):
        if plan.run(name) is not None:
            words += [f"--{name}", str(plan.run(name))]
    return words + (["--strip_plan"] if plan.run("strip_plan") else [])


def flag_words(flag: Flag, value: Any) -> list[str]:
    """One flag as trtllm-build takes it; nothing for a value that is its absence."""
    if flag.kind == "flag":
        return [f"--{flag.name}"] if value else []
    takes_disable = isinstance(flag.kind, tuple) and "disable" in flag.kind
    if flag.name == "paged_kv_cache" or (value is None and not takes_disable):
        return []
    if value is None or isinstance(value, bool):
        return [f"--{flag.name}", "enable" if value else "disable"]
    return [f"--{flag.name}", str(value).lower() if flag.name == "kv_cache_type" else str(value)]
