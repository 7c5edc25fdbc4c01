"""Change one thing of the product at a time, and see whether a test notices.

    python benchmarks/mutants.py map [FILE ...] [--jobs N]   which tests reach which place, into out/checks.json
    python benchmarks/mutants.py run [WORD ...] [--jobs N] [--seconds S] [--sample N] [--tests N]   the changes

With ``--kind checks`` a change drops a statement that refuses or reports; with ``--kind arithmetic`` one operator,
comparison or number becomes another (see ``mutations.py``). Each mutant is a fork of a process that has loaded PyTorch
already, and runs tests until one fails, the quickest of every file first, 500 at most (``--tests``): what thousands of
tests reach may need more of them. WORDs limit the run to changes whose file and line contain one, ``--sample`` to so
many of them, drawn evenly and always the same; after S seconds no mutant is begun. Survivors are listed, and what was
not judged; exit code 1 if there is one.

Programs that a test starts are marked and mutated too (through sitecustomize), and so are copies of a file elsewhere,
such as the models of a Triton repository.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from importlib.abc import Loader
from importlib.machinery import SourceFileLoader
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mutations import HIT, KINDS, Arithmetic, Checks

ROOT = Path(__file__).parent.parent
FOLDERS = ("plugins", "convert", "build", "cli")
# Seconds that one test of a mutant may take; a change that hangs a test has been noticed.
LONGEST = 300
# What a program started by a test finds in its environment: where it logs, or what it drops.
LOG, DROPPED, KIND = "MUTANTS_LOG", "MUTANTS_DROPPED", "MUTANTS_KIND"
# The places that the running test has reached in this process.
SEEN: set[str] = set()
STARTED = f"import sys\nsys.path.append({str(ROOT / 'benchmarks')!r})\nimport mutants\nmutants.install_started()\n"


def install(dropped: str | None) -> None:
    """Have every module of the project compiled with its checks marked, or with one dropped."""
    original = SourceFileLoader.source_to_code
    names = {path.read_bytes(): str(path.relative_to(ROOT)) for path in source_files()}
    setattr(builtins, HIT, log_hit)

    def compiled(self: Loader, data: Any, path: str, *args: Any, **named: Any) -> Any:
        name = None if isinstance(data, ast.AST) else names.get(bytes(data))
        if name is None:
            return original(self, data, path, *args, **named)  # type: ignore[arg-type]
        kind, tree = chosen(), ast.parse(data)
        tree = kind.marked(tree, name) if dropped is None else kind.changed(tree, name, dropped)
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    SourceFileLoader.source_to_code = compiled  # type: ignore[assignment, method-assign]
    SourceFileLoader.get_code = uncached  # type: ignore[assignment, method-assign]


def chosen() -> Checks | Arithmetic:
    """The kind of mutation that this run makes."""
    return KINDS[os.environ[KIND]]


def map_file() -> Path:
    return ROOT / "out" / f"{os.environ[KIND]}.json"


def install_started() -> None:
    """The same in a program that a test has started."""
    if LOG in os.environ or DROPPED in os.environ:
        install(os.environ.get(DROPPED))


def log_hit(key: str) -> None:
    """Note that the running test has reached a place; from whichever process of it, and once from each."""
    if key in SEEN:
        return
    SEEN.add(key)
    log = Path(os.environ[LOG])
    with suppress(OSError), log.open("a") as lines:  # a test may forbid its programs to write
        lines.write(f"{key}\t{log.with_suffix('.now').read_text()}\n")


def uncached(self: SourceFileLoader, fullname: str) -> Any:
    """The code of a module, compiled now: what lies in __pycache__ has no mutants."""
    path = self.get_filename(fullname)
    return self.source_to_code(self.get_data(path), path)


class Watch:
    """A pytest plugin: the process ends where one test takes too long, however long all of them together do."""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.alarm(LONGEST)


class Recorder:
    """A pytest plugin: which test is running, how long it took, and how it ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        SEEN.clear()
        Path(os.environ[LOG]).with_suffix(".now").write_text(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)


def source_files() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def all_changes() -> list[str]:
    """The keys of every change of the project."""
    return [
        key
        for path in source_files()
        for key in chosen().keys(ast.parse(path.read_bytes()), str(path.relative_to(ROOT)))
    ]


def map_tests(jobs: int, words: list[str]) -> None:
    """Run every test once, a share of their files in each process, and write which checks each reached."""
    import torch

    torch.set_num_threads(1)
    files = words or sorted(map(str, Path("tests").glob("test_*.py")))
    map_file().parent.mkdir(exist_ok=True)
    parts = [map_file().with_suffix(f".{job}") for job in range(min(jobs, len(files)))]
    for job, part in enumerate(parts):
        if os.fork() == 0:
            map_share(files[job :: len(parts)], part)
    statuses = [os.wait()[1] for _ in parts]
    if any(statuses):
        sys.exit("some test file cannot be collected; nothing was mapped")
    seconds: dict[str, float] = {}
    tests: dict[str, list[str]] = defaultdict(list)
    for part in parts:
        found = json.loads(part.read_text())
        part.unlink()
        seconds |= found["seconds"]
        for key, own in found["reached"].items():
            tests[key] += own
    known = {key: sorted(own, key=lambda test: seconds.get(test, 0.0)) for key, own in tests.items()}
    map_file().write_text(json.dumps(known, indent=1))
    places = {chosen().place(key) for key in all_changes()}
    print(f"{len(known.keys() & places)} of {len(places)} places reached by {len(seconds)} tests; {map_file()}")


def map_share(files: list[str], part: Path) -> None:
    """The whole life of a process that runs some of the tests."""
    import pytest

    log = Path(f"{part}.log")
    log.write_text("")
    os.environ[LOG] = str(log)
    install(None)
    recorder = Recorder()
    if pytest.main(["-q", "-p", "no:cacheprovider", *files], plugins=[recorder]) > pytest.ExitCode.TESTS_FAILED:
        os._exit(1)
    reached: dict[str, set[str]] = defaultdict(set)
    for line in log.read_text().splitlines():
        key, test = line.split("\t", 1)
        reached[key].add(test)
    sound = {key: sorted(tests - {*recorder.failed}) for key, tests in reached.items()}
    found = {"reached": {key: tests for key, tests in sound.items() if tests}, "seconds": recorder.seconds}
    part.write_text(json.dumps(found))
    log.unlink()
    log.with_suffix(".now").unlink()
    os._exit(0)


def by_turns(tests: list[str]) -> list[str]:
    """The first test of every file, then the second of each: some that differ come early."""
    of_file: dict[str, list[str]] = defaultdict(list)
    for test in tests:
        of_file[test.partition("::")[0]].append(test)
    return [test for turn in zip_longest(*of_file.values()) for test in turn if test is not None]


def start(key: str, tests: list[str]) -> int:
    """A child that exits 0 if its tests pass with this change (it survives), otherwise if one fails or hangs."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    import pytest

    os.environ[DROPPED] = key
    install(key)
    failed = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests], plugins=[Watch()])
    os._exit(1 if failed else 0)


def check_map(known: dict[str, list[str]]) -> None:
    """Leave, unless the tests of the map are there: one that is not would fail, whatever is changed."""
    tests = {test for own in known.values() for test in own}
    files = sorted({test.partition("::")[0] for test in tests})
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", *files]
    there = set(subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines())
    if tests - there:
        sys.exit(f"{map_file()} is older than the tests (there is no {min(tests - there)}); map them again")


def run_mutants(jobs: int, words: list[str], limit: float, sample: int | None, most: int) -> int:
    import hypothesis  # noqa: F401 (loaded once, for all forks)
    import pytest  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    known: dict[str, list[str]] = json.loads(map_file().read_text())
    check_map(known)
    waiting = [key for key in all_changes() if not words or any(word in key for word in words)]
    if sample is not None and sample < len(waiting):
        waiting = random.Random(0).sample(waiting, sample)
    place = chosen().place
    unreached = [key for key in waiting if place(key) not in known]
    waiting = [key for key in waiting if place(key) in known]
    total, running, survived, began = len(waiting), dict[int, str](), list[str](), time.monotonic()
    while running or (waiting and time.monotonic() - began < limit):
        while waiting and len(running) < jobs and time.monotonic() - began < limit:
            key = waiting.pop(0)
            running[start(key, by_turns(known[place(key)])[:most])] = key
        child, status = os.wait()
        key = running.pop(child)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            survived.append(key)
            print(f"survived: {key}", flush=True)
    judged = total - len(waiting)
    print(f"{judged - len(survived)} of {judged} changes were noticed, in {time.monotonic() - began:.0f} s")
    for key in unreached:
        print(f"reached by no test: {key}")
    for key in waiting:
        print(f"not judged: {key}")
    return 1 if survived or unreached or waiting else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["map", "run"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--kind", choices=list(KINDS), default="checks")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--tests", type=int, default=500)
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ[KIND] = options.kind
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(STARTED)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        if options.what == "map":
            map_tests(options.jobs, options.words)
        else:
            sys.exit(run_mutants(options.jobs, options.words, options.seconds, options.sample, options.tests))


if __name__ == "__main__":
    main()
