"""Hostile files without end: the kinds of tests/fuzzing_kinds.py, as many cases of each as asked for.

    python benchmarks/fuzz.py CASES [KIND ...] [--jobs N] [--seconds S]

CASES of each kind (100,000 in all are some 6,000 each), spread over processes, other ones on every run. Prints for each
kind how many cases were accepted and how many refused; a fault (a traceback, a wrong success, a refusal that is not one
short printable line) ends its portion and is shown as small as hypothesis can make it. Exit code 1 if there was one.
After S seconds it stops.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import Pool
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.fuzzing_kinds import KINDS

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
# Cases that one process tries with one made folder.
PORTION = 250


def portion(work: tuple[str, int]) -> tuple[str, Counter[str], str | None]:
    """Some cases of one kind; the fault, if there was one."""
    name, cases = work
    torch.set_num_threads(1)
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            kind = KINDS[name](Path(folder))

            @settings(max_examples=cases, database=None, deadline=None, suppress_health_check=QUIET)
            @given(st.data())
            def case(data: st.DataObject) -> None:
                ends["refused" if kind.case(data.draw).refusal else "accepted"] += 1

            case()
        except BaseException as error:
            return name, ends, f"{error.__class__.__name__}: {error}"
    return name, ends, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=int)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], metavar="KIND")
    options = parser.parse_args()
    ends: dict[str, Counter[str]] = {name: Counter() for name in options.kinds or KINDS}
    faults, began = list[str](), time.monotonic()
    portions = [min(PORTION, options.cases - done) for done in range(0, options.cases, PORTION)]
    work = [(name, cases) for cases in portions for name in ends]
    with Pool(options.jobs, maxtasksperchild=8) as pool:
        for name, counted, fault in pool.imap_unordered(portion, work):
            ends[name] += counted
            if fault is not None:
                faults.append(f"{name}: {fault}")
                print(f"FAULT {faults[-1][:2000]}", flush=True)
            if time.monotonic() - began > options.seconds:
                break
    for name, counted in ends.items():
        print(f"{name:45s} {counted['refused']:8,d} refused {counted['accepted']:8,d} accepted")
    total = sum(sum(counted.values()) for counted in ends.values())
    print(f"{total:,} cases, {len(faults)} faults, {time.monotonic() - began:.0f} s")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
