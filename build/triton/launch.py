"""How a repository is started: the script that lies in it, and the container for that."""

from __future__ import annotations

import shlex

from ...convert.targets.trtllm.releases import number
from ..releases import RELEASES, TRITON

DOCKER = "docker run --rm --gpus all --net host --shm-size 2g --ulimit memlock=-1"


def serve_image(version: str) -> str:
    """NVIDIA's Triton container with the TensorRT-LLM that built an engine; <yy.mm> where it is not known."""
    known = {number(release.version): release.serve_image for release in RELEASES}
    return known.get(number(version), TRITON.format("<yy.mm>"))


def docker_command(image: str, mounts: dict[str, str], script: str) -> str:
    """The command that starts a repository's script in its container.

    Args:
        mounts: folder on this machine -> the same folder in the container.
        script: launch.sh in the container.
    """
    volumes = [f"-v {shlex.quote(f'{here}:{there}:ro')}" for here, there in mounts.items()]
    return " ".join([DOCKER, *volumes, shlex.quote(image), shlex.quote(script)])


def launch_script(world_size: int, version: str, preview: bool = False) -> str:
    """A bash script that starts the server: one process a GPU, of which the first answers requests."""
    missing = f"launch.sh: no tritonserver here; run this in {serve_image(version)} (TensorRT-LLM {version})"
    gpus = f"{world_size} GPU{'s, one process each' if world_size > 1 else ''}"
    if preview:
        remedy = "pip install --no-deps nvidia-pytriton==0.7.0 'numpy<2', and activate it or set PYTHON"
        missing, gpus = (
            f"launch.sh: no tritonserver here; in an environment with enginesmith: {remedy}",
            "no GPU needed",
        )
    return f"""#!/usr/bin/env bash
# Starts Triton on this repository: {gpus}. Ctrl-C, or SIGTERM, stops it, which may take half a minute.
# Ports: HTTP_PORT, GRPC_PORT, METRICS_PORT. Further arguments go to tritonserver. Without one on the PATH, PYTHON
# (python3) is asked for that of nvidia-pytriton.
set -euo pipefail
repository=$(CDPATH= cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")" && pwd)
world_size={world_size}
server=(
    tritonserver "--model-repository=$repository" --disable-auto-complete-config
    "--http-port=${{HTTP_PORT:-8000}}" "--grpc-port=${{GRPC_PORT:-8001}}" "--metrics-port=${{METRICS_PORT:-8002}}"
)
if ! command -v tritonserver >/dev/null; then
    # nvidia-pytriton brings one, without TensorRT-LLM's backend.
    python=${{PYTHON:-python3}} status=3
    if command -v "$python" >/dev/null; then
        status=0
        settings=$("$python" "$repository/local_server.py") || status=$?
    fi
    if [ "$status" -ne 0 ]; then
        [ "$status" -ne 3 ] || echo {shlex.quote(missing)} >&2
        exit 127
    fi
    eval "$settings"
fi
if [ "$world_size" -eq 1 ]; then
    exec "${{server[@]}}" "$@"
fi
# Rank 0 serves every model; the others only compute, and load nothing but the engine.
command=(mpirun --allow-run-as-root)
for ((rank = 0; rank < world_size; rank++)); do
    [ "$rank" -eq 0 ] || command+=(:)
    command+=(-n 1 "${{server[@]}}" "--backend-config=python,shm-region-prefix-name=rank${{rank}}_" "$@")
    [ "$rank" -eq 0 ] || command+=(--model-control-mode=explicit --load-model=tensorrt_llm)
done
exec "${{command[@]}}"
"""
