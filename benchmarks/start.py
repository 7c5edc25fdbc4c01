"""How soon the command answers: help, refusals and plans, each a whole process, the best of five.

    python benchmarks/start.py [WORD ...]

The command lines of tests/starts.py, or those that hold one of the WORDs; prints seconds, exit code and words of each.
Modules are compiled beforehand, as those of an installed package are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.starts import STARTS, write_folders

RUNS = 5
COMMAND = [sys.executable, "-c", "from enginesmith.cli.main import main; main()"]


def main() -> None:
    words, slowest = sys.argv[1:], 0.0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "folders"
        root.mkdir()
        write_folders(root)
        environment = os.environ | {"PYTHONPYCACHEPREFIX": f"{scratch}/compiled"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for start in STARTS:
            if words and not any(word in start.words for word in words):
                continue
            seconds = []
            for _ in range(RUNS):
                shutil.rmtree(root / "plan", ignore_errors=True)
                begin = time.perf_counter()
                command = [*COMMAND, *start.words.split()]
                done = subprocess.run(command, capture_output=True, cwd=root, env=environment)
                seconds.append(time.perf_counter() - begin)
            slowest = max(slowest, min(seconds))
            odd = "" if done.returncode == start.code else f" (not {start.code})"
            print(f"{min(seconds):5.2f} s  {done.returncode}{odd}  enginesmith {start.words}", flush=True)
    print(f"slowest: {slowest:.2f} s")


if __name__ == "__main__":
    main()
