#!/usr/bin/env python3
"""launch.sh runs this where no tritonserver is on the PATH: how to start the one that nvidia-pytriton brings.

Its server and its Python backend run without a GPU; TensorRT-LLM's backend is not among what it brings. Prints what
bash shall export, and the folder of backends; exits with a line of why not.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
import tempfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"


def main() -> None:
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        sys.exit(3)  # launch.sh says what is missing
    package = Path(found.origin).parent
    server, libraries = package / "tritonserver", package.parent / "nvidia_pytriton.libs"
    stub = server / "python_backend_stubs" / PYTHON / STUB
    if not stub.exists():
        known = ", ".join(sorted((path.name for path in stub.parent.parent.iterdir()), key=by_number))
        fail(f"nvidia-pytriton has a backend for Python {known}; {sys.executable} is {PYTHON}, set PYTHON to another")
    check_numpy()
    library, folder = libpython(), start_folder(server / "backends" / "python", stub)
    settings = {
        "PATH": joined(folder / "bin", server / "bin", os.environ.get("PATH")),
        "LD_LIBRARY_PATH": joined(library, libraries, os.environ.get("LD_LIBRARY_PATH")),
    }
    for name, value in settings.items():
        print(f"export {name}={shlex.quote(value)}")
    print(f"server+=({shlex.quote(f'--backend-directory={folder}/backends')})")


def check_numpy() -> None:
    """The stub was built before NumPy 2, whose strings it takes for something else."""
    try:
        installed = version("numpy")
    except PackageNotFoundError:
        fail(f"{sys.executable} has no numpy; pip install 'numpy<2'")
    if int(installed.split(".")[0]) >= 2:
        fail(f"{sys.executable} has numpy {installed}, nvidia-pytriton's Python backend needs 'numpy<2'")


def libpython() -> Path:
    """The folder of this interpreter's shared library, of which another patch release would not do."""
    name = f"libpython{PYTHON}.so.1.0"
    libraries = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    places = [Path(sys.base_prefix) / "lib", libraries, libraries / (sysconfig.get_config_var("MULTIARCH") or "")]
    folder = next((place for place in places if (place / name).exists()), None)
    if folder is None:
        fail(f"{sys.executable} has no {name}, which the Python backend loads; set PYTHON to one with a shared library")
    return folder


def start_folder(backend: Path, stub: Path) -> Path:
    """What a server for this interpreter is started with, made once: links to a backend, and an environment.

    The stub looks for packages where the first python3 on the PATH would, whatever PYTHONPATH says. This one finds
    those of this interpreter, in the same order.
    """
    if not os.access(stub, os.X_OK):
        fail(f"{stub} may not be executed; chmod +x it")
    python = Path(getattr(sys, "_base_executable", sys.executable))
    packages = "".join(map(path_line, (path for path in sys.path if Path(path) != Path(__file__).parent)))
    name = hashlib.sha256(f"{stub} {stub.stat().st_mtime_ns} {python} {packages}".encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "enginesmith"
    folder = cache / f"tritonserver-{name}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=cache))
    links, site = made / "backends" / "python", made / "lib" / f"python{PYTHON}" / "site-packages"
    for place in (links, site, made / "bin"):
        place.mkdir(parents=True)
    for path in (*backend.iterdir(), stub):
        (links / path.name).symlink_to(path)
    (made / "bin" / "python3").symlink_to(python)
    (made / "pyvenv.cfg").write_text(f"home = {python.parent}\n")
    (site / "packages.pth").write_text(packages)
    with suppress(OSError):  # another server's start was faster
        made.rename(folder)
    shutil.rmtree(made, ignore_errors=True)
    return folder


def path_line(path: str) -> str:
    """A line of a .pth file; where packages are installed, theirs count too."""
    return f"import site; site.addsitedir({path!r})\n" if path.endswith("-packages") else f"{path}\n"


def joined(*paths: str | Path | None) -> str:
    return os.pathsep.join(str(path) for path in paths if path)


def by_number(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def fail(why: str) -> NoReturn:
    sys.exit(f"launch.sh: {why}")


if __name__ == "__main__":
    main()
