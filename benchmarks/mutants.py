"""Drop one check at a time, and see whether a test notices.

    python benchmarks/mutants.py map [--jobs N] [FILE ...]   which tests reach which check, into out/checks.json
    python benchmarks/mutants.py run [--jobs N] [WORD ...]   each check dropped, the tests that reach it run

A check is a statement that refuses (``raise``, but not the bare one) or that reports (a problem or a reason added to a
list, a fault yielded). Dropped, a ``raise`` does nothing; in an ``except`` clause it lets the first error through. Each
mutant is a fork of a process that has loaded PyTorch already, and runs the quickest tests first until one fails. WORDs
limit the run to checks whose file and line contain one. Survivors are listed; exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import signal
import sys
import time
from collections import defaultdict
from importlib.abc import Loader
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MAP = ROOT / "out" / "checks.json"
FOLDERS = ("convert", "build", "cli")
REPORTS = ("problems", "reasons", "failures", "found")
HIT = "__check_reached__"
# Seconds a mutant may take, and how many tests are tried; a check that hangs a test has been noticed.
LONGEST, MOST_TESTS = 300, 500

reached: dict[str, set[str]] = defaultdict(set)
now_running = ""


def is_check(node: ast.AST) -> bool:
    """Whether a statement refuses or reports."""
    if isinstance(node, ast.Raise):
        return node.exc is not None
    if isinstance(node, ast.AugAssign):
        return isinstance(node.target, ast.Name) and node.target.id in REPORTS
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        function = node.value.func
        named = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
        return named and function.attr == "append" and function.value.id in REPORTS
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Yield) and "warnings" not in ast.dump(node)


class Checks(ast.NodeTransformer):
    """Marks every check of a file, or drops one.

    Args:
        name: of the file, for keys "convert/source.py:120".
        dropped: the key to drop; None marks all.
    """

    def __init__(self, name: str, dropped: str | None):
        self.name, self.dropped, self.handlers = name, dropped, 0

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        self.handlers += 1
        self.generic_visit(node)
        self.handlers -= 1
        return node

    def visit(self, node: ast.AST) -> Any:
        if not is_check(node):
            return self.generic_visit(node)
        key = f"{self.name}:{node.lineno}"  # type: ignore[attr-defined]
        if self.dropped is None:
            return [ast.copy_location(ast.parse(f"__import__('builtins').{HIT}({key!r})").body[0], node), node]
        if key != self.dropped:
            return node
        instead: ast.stmt = ast.Raise() if self.handlers and isinstance(node, ast.Raise) else ast.Pass()
        return ast.copy_location(instead, node)


def install(dropped: str | None) -> None:
    """Have every module of the project compiled with its checks marked, or with one dropped."""
    original = SourceFileLoader.source_to_code

    def compiled(self: Loader, data: Any, path: str, *args: Any, **named: Any) -> Any:
        file = Path(path).resolve()
        if not any(file.is_relative_to(ROOT / folder) for folder in FOLDERS) or isinstance(data, ast.AST):
            return original(self, data, path, *args, **named)  # type: ignore[arg-type]
        tree = Checks(str(file.relative_to(ROOT)), dropped).visit(ast.parse(data))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    SourceFileLoader.source_to_code = compiled  # type: ignore[assignment, method-assign]
    SourceFileLoader.get_code = uncached  # type: ignore[assignment, method-assign]


def uncached(self: SourceFileLoader, fullname: str) -> Any:
    """The code of a module, compiled now: what lies in __pycache__ has no mutants."""
    path = self.get_filename(fullname)
    return self.source_to_code(self.get_data(path), path)


class Recorder:
    """A pytest plugin: which test is running, how long it took, and how it ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        global now_running
        now_running = nodeid

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)


def all_checks() -> list[str]:
    """The keys of every check of the project."""
    keys = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            name = str(path.relative_to(ROOT))
            keys += [f"{name}:{node.lineno}" for node in ast.walk(tree) if is_check(node)]  # type: ignore[attr-defined]
    return keys


def map_tests(jobs: int, words: list[str]) -> None:
    """Run every test once, a share of their files in each process, and write which checks each reached."""
    import torch

    torch.set_num_threads(1)
    files = words or sorted(map(str, Path("tests").glob("test_*.py")))
    MAP.parent.mkdir(exist_ok=True)
    parts = [MAP.with_suffix(f".{job}") for job in range(min(jobs, len(files)))]
    for job, part in enumerate(parts):
        if os.fork() == 0:
            map_share(files[job :: len(parts)], part)
    for _ in parts:
        os.wait()
    seconds: dict[str, float] = {}
    tests: dict[str, list[str]] = defaultdict(list)
    for part in parts:
        found = json.loads(part.read_text())
        part.unlink()
        seconds |= found["seconds"]
        for key, own in found["reached"].items():
            tests[key] += own
    known = {key: sorted(own, key=lambda test: seconds.get(test, 0.0)) for key, own in tests.items()}
    MAP.write_text(json.dumps(known, indent=1))
    print(f"{len(known)} of {len(all_checks())} checks reached by {len(seconds)} tests; {MAP}")


def map_share(files: list[str], part: Path) -> None:
    """The whole life of a process that runs some of the tests."""
    import builtins

    import pytest

    setattr(builtins, HIT, lambda key: reached[key].add(now_running))
    install(None)
    recorder = Recorder()
    pytest.main(["-q", "-p", "no:cacheprovider", *files], plugins=[recorder])
    sound = {key: sorted(tests - {*recorder.failed}) for key, tests in reached.items()}
    found = {"reached": {key: tests for key, tests in sound.items() if tests}, "seconds": recorder.seconds}
    part.write_text(json.dumps(found))
    os._exit(0)


def start(key: str, tests: list[str]) -> int:
    """A child that exits 0 if its tests pass without this check (it survives), 1 if one fails."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    signal.alarm(LONGEST)
    import pytest

    install(key)
    failed = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests[:MOST_TESTS]])
    os._exit(1 if failed else 0)


def run_mutants(jobs: int, words: list[str]) -> int:
    import hypothesis  # noqa: F401 (loaded once, for all forks)
    import pytest  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    known: dict[str, list[str]] = json.loads(MAP.read_text())
    waiting = [key for key in all_checks() if not words or any(word in key for word in words)]
    unreached = [key for key in waiting if key not in known]
    waiting = [key for key in waiting if key in known]
    total, running, survived, began = len(waiting), dict[int, str](), list[str](), time.monotonic()
    while waiting or running:
        while waiting and len(running) < jobs:
            key = waiting.pop(0)
            running[start(key, known[key])] = key
        child, status = os.wait()
        key = running.pop(child)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            survived.append(key)
            print(f"survived: {key}", flush=True)
    print(f"{total - len(survived)} of {total} dropped checks were noticed, in {time.monotonic() - began:.0f} s")
    for key in unreached:
        print(f"reached by no test: {key}")
    return 1 if survived or unreached else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["map", "run"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    os.chdir(ROOT)
    if options.what == "map":
        map_tests(options.jobs, options.words)
    else:
        sys.exit(run_mutants(options.jobs, options.words))


if __name__ == "__main__":
    main()
