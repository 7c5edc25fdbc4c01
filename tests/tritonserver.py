"""A real tritonserver for tests: starts a repository on free ports, waits until it is ready, and leaves nothing behind.

The server is the one on the PATH, or nvidia-pytriton's in .tritonserver (tests/run.sh puts it there) or in this
environment; it runs without a GPU. Nothing in it executes an engine: a repository served here has another
``tensorrt_llm`` (``with_engine``).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from enginesmith.build.triton import models

ROOT = Path(__file__).parent.parent
BESIDE = ROOT / ".tritonserver"
FINDER = Path(models.__file__).parent / "local_server.py"
ECHO = Path(__file__).parent / "echo_engine.py"
READY_SECONDS, STOP_SECONDS = 90, 20


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        http, grpc, metrics: host:port.
        log: what it and its models print.
    """

    http: str
    grpc: str
    metrics: str
    log: Path

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def environment() -> dict[str, str]:
    """What launch.sh is started in: this interpreter, its packages, and before them the server's."""
    paths = [str(BESIDE), *(path for path in sys.path if path)]
    here = {"PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(paths), "XDG_CACHE_HOME": str(BESIDE / "cache")}
    return os.environ | here | {"OMP_NUM_THREADS": "1"}


@cache
def why_no_server() -> str:
    """Why no server can be started here; empty if one can."""
    if shutil.which("tritonserver"):
        return ""
    done = subprocess.run([sys.executable, FINDER], env=environment(), capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip() or f"no tritonserver: pip install --no-deps --target {BESIDE.name} nvidia-pytriton"
    return ""


def needs_server() -> None:
    """Skip the test where no server can be started."""
    if reason := why_no_server():
        pytest.skip(reason)


def with_engine(repository: Path, model: Path = ECHO) -> Path:
    """The same repository, its engine replaced by a model of the Python backend."""
    config = repository / "tensorrt_llm" / "config.pbtxt"
    config.write_text(config.read_text().replace('backend: "tensorrtllm"', 'backend: "python"'))
    shutil.copyfile(model, repository / "tensorrt_llm" / "1" / "model.py")
    return repository


@contextmanager
def serving(repository: Path, *arguments: str) -> Iterator[Running]:
    """A server for a repository, by its launch.sh; its log is shown if it does not start or the test fails."""
    ports, log, mark = free_ports(3), repository.parent / f"{repository.name}.log", f"test-{uuid.uuid4().hex[:8]}-"
    names = dict(zip(("HTTP_PORT", "GRPC_PORT", "METRICS_PORT"), map(str, ports), strict=True))
    running = Running(*(f"127.0.0.1:{port}" for port in ports), log)
    command = ["bash", repository / "launch.sh", "--exit-timeout-secs=10", *arguments]
    command.append(f"--backend-config=python,shm-region-prefix-name={mark}")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment() | names, stdout=output, stderr=output, start_new_session=True,
            preexec_fn=end_with_the_tests,
        )  # fmt: skip
    try:
        wait_until_ready(process, running)
        yield running
    except BaseException:
        print(running.said()[-8000:])
        raise
    finally:
        stop(process)
        for left in Path("/dev/shm").glob(f"{mark}*"):
            left.unlink(missing_ok=True)


def end_with_the_tests() -> None:
    """Have Linux end this process when the one that started it is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def wait_until_ready(process: subprocess.Popen[bytes], running: Running) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"tritonserver ended with {process.returncode} before it was ready")
        with suppress(URLError, OSError), urlopen(f"http://{running.http}/v2/health/ready", timeout=5):
            return
        time.sleep(0.1)
    raise TimeoutError(f"tritonserver is not ready after {READY_SECONDS} s")


def stop(process: subprocess.Popen[bytes]) -> None:
    """The server ends its models itself; after a while whatever is left of its session is killed."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
