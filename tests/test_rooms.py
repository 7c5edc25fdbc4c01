"""The house: which room may import which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("plugins", "convert", "build", "api", "cli")
ROOMS = (
    "files",
    "tokens",
    "models",
    "numbers",
    "sources",
    "readers",
    "statistics",
    "quantize",
    "targets",
    "prove",
    "generate",
    "evaluate",
    "job",
)
SOURCES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
# Programs that run where nothing is installed, beside files of the same folder.
PROGRAMS = ROOT / "build" / "triton" / "models", ROOT / "convert" / "tokens"


def module(path: Path) -> tuple[str, ...]:
    """Its name inside the import package; api/ is the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1 if parts[0] == "api" else 0 : -1 if parts[-1] == "__init__" else None]


MODULES = {module(path): path for path in SOURCES}


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """The modules of the project that a file imports, wherever it does."""
    package = path.relative_to(ROOT).parts[:-1] if path.relative_to(ROOT).parts[0] != "api" else ()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + tuple(
                (node.module or "").split(".") if node.module else ()
            )
            for name in node.names:
                yield (*base, name.name) if (*base, name.name) in MODULES else base


def place(name: tuple[str, ...]) -> int:
    """How high a module stands; errors and devices are everybody's ground."""
    floor = name[0] if name and name[0] in FLOORS else "api"
    if floor != "convert":
        return FLOORS.index(floor) * 100
    return 100 + (ROOMS.index(name[1]) if len(name) > 1 and name[1] in ROOMS else 0)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_from_above(path: Path) -> None:
    if any(path.is_relative_to(folder) for folder in PROGRAMS):
        return
    above = [".".join(name) for name in imported(path) if place(name) > place(module(path))]
    assert above == []


def test_no_circles() -> None:
    graph = {module(path): {name for name in imported(path) if name != module(path)} for path in SOURCES}
    list(TopologicalSorter(graph).static_order())


def test_every_room_says_what_it_is_for() -> None:
    for path in SOURCES:
        if not any(path.is_relative_to(folder) for folder in PROGRAMS):
            assert ast.get_docstring(ast.parse(path.read_text())), path


def test_every_room_is_installed() -> None:
    listed = (ROOT / "pyproject.toml").read_text()
    for folder in {path.parent for path in SOURCES}:
        name = ".".join(("enginesmith", *folder.relative_to(ROOT).parts))
        assert f'"{name.replace(".api", "")}"' in listed
