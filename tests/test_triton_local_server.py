"""launch.sh outside a container: the tritonserver that nvidia-pytriton put into the environment of a Python."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from enginesmith.build.triton.generate import generate

from .test_triton_launch import options

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SERVER = """#!/bin/bash
printf '%s\\n' "$@" "LD_LIBRARY_PATH=$LD_LIBRARY_PATH"
python3 -c 'import sys; print(sys.path)'
"""


def pytriton(folder: Path, stub: str = PYTHON, numpy: str | None = "1.26.4", mode: int = 0o755) -> Path:
    """A folder of packages with what nvidia-pytriton and NumPy leave there, as far as it is looked at."""
    inside = folder / "pytriton" / "tritonserver"
    for place in (inside / "bin", inside / "backends" / "python", inside / "python_backend_stubs" / stub):
        place.mkdir(parents=True)
    (folder / "pytriton" / "__init__.py").touch()
    (inside / "bin" / "tritonserver").write_text(SERVER)
    (inside / "bin" / "tritonserver").chmod(0o755)
    (inside / "backends" / "python" / "libtriton_python.so").write_text("backend")
    program = inside / "python_backend_stubs" / stub / "triton_python_backend_stub"
    program.write_text("stub")
    program.chmod(mode)
    if numpy:
        (folder / f"numpy-{numpy}.dist-info").mkdir()
        (folder / f"numpy-{numpy}.dist-info" / "METADATA").write_text(f"Name: numpy\nVersion: {numpy}\n")
    return folder


def launch(folder: Path, *packages: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start a repository where there is no tritonserver but what these packages bring."""
    repository = folder / "out" if (folder / "out").exists() else generate(options(folder))
    given = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "XDG_CACHE_HOME": str(folder / "cache")}
    paths = os.pathsep.join(map(str, packages))
    return subprocess.run(
        [repository / "launch.sh", "--log-info=0"],
        env={**given, "PYTHONPATH": paths, **environment}, capture_output=True, text=True,
    )  # fmt: skip


def shared_libpython() -> bool:
    folders = (f"{sys.base_prefix}/lib", sysconfig.get_config_var("LIBDIR"), "/usr/lib/x86_64-linux-gnu")
    return any((Path(folder) / f"libpython{PYTHON}.so.1.0").exists() for folder in folders)


@pytest.mark.skipif(not shared_libpython(), reason="this Python has no shared library")
def test_it_is_started_for_this_python(tmp_path: Path) -> None:
    packages, more = pytriton(tmp_path / "it's $(here)"), tmp_path / "more"
    more.mkdir()
    for _ in range(2):  # the second finds what the first made
        done = launch(tmp_path, packages, more)
        assert done.stderr == ""
    words = done.stdout.splitlines()
    assert words[0] == f"--model-repository={tmp_path}/out"
    [backends] = [word.partition("=")[2] for word in words if word.startswith("--backend-directory=")]
    assert {path.name: path.read_text() for path in (Path(backends) / "python").iterdir()} == {
        "libtriton_python.so": "backend",
        "triton_python_backend_stub": "stub",
    }
    assert words[-3] == "--log-info=0"
    first, second = words[-2].partition("=")[2].split(":")
    assert (Path(first) / f"libpython{PYTHON}.so.1.0").exists()
    assert Path(second) == packages / "nvidia_pytriton.libs"
    assert len(list((tmp_path / "cache" / "enginesmith").iterdir())) == 1


@pytest.mark.skipif(not shared_libpython(), reason="this Python has no shared library")
def test_the_first_python_on_its_path_finds_the_same_packages(tmp_path: Path) -> None:
    """The stub looks there, and not at PYTHONPATH; nvidia-pytriton's NumPy must come first."""
    packages, more = pytriton(tmp_path / "packages"), tmp_path / "more"
    more.mkdir()
    (more / "found.pth").touch()
    done = launch(tmp_path, packages, more)
    [paths] = [line for line in done.stdout.splitlines() if line.startswith("[")]
    ours = [path for path in sys.path if path.endswith("-packages") and path in paths]
    places = [paths.index(repr(str(path))) for path in (packages, more, *ours)]
    assert ours
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stub": "3.99"}, f"has a backend for Python 3.99; {sys.executable} is {PYTHON}, set PYTHON to another"),
        ({"numpy": "2.4.1"}, f"{sys.executable} has numpy 2.4.1, nvidia-pytriton's Python backend needs 'numpy<2'"),
        ({"mode": 0o644}, "may not be executed; chmod +x it"),
    ],
)
def test_what_is_in_the_way_is_one_line(changes: dict[str, str], words: str, tmp_path: Path) -> None:
    if "mode" in changes and not shared_libpython():
        pytest.skip("this Python has no shared library")
    done = launch(tmp_path, pytriton(tmp_path / "packages", **changes))  # type: ignore[arg-type]
    assert done.returncode == 127
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("launch.sh: ")
    assert words in line


def test_no_numpy_and_no_shared_library(tmp_path: Path) -> None:
    """A Python without packages, and one that was moved away from its library."""
    packages = pytriton(tmp_path / "packages", numpy=None)
    repository = generate(options(tmp_path))
    isolated = [sys.executable, "-S", repository / "local_server.py"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(packages), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(isolated, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"launch.sh: {sys.executable} has no numpy; pip install 'numpy<2'\n")
    moved = (
        "import runpy, sys, sysconfig; sys.base_prefix = '/nowhere';"
        "sysconfig.get_config_var = lambda name: '/nowhere';"
        f"sys.path.insert(0, {str(pytriton(tmp_path / 'more'))!r});"
        f"runpy.run_path({str(repository / 'local_server.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", moved], env=environment, capture_output=True, text=True)
    assert f"{sys.executable} has no libpython{PYTHON}.so.1.0, which the Python backend loads" in done.stderr


@pytest.mark.parametrize("python", [sys.executable, "/no/python"])
def test_without_it_the_container_is_named(python: str, tmp_path: Path) -> None:
    done = launch(tmp_path, PYTHON=python)
    if "pytriton" in done.stderr:
        pytest.skip("nvidia-pytriton is in this environment")
    assert done.returncode == 127
    assert done.stderr.startswith("launch.sh: no tritonserver here; run this in nvcr.io/nvidia/tritonserver:")
    assert len(done.stderr.splitlines()) == 1
