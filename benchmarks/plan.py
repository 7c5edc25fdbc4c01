"""How long a plan takes: `enginesmith build --plan_only` of a converted checkpoint, as a whole process.

    python benchmarks/plan.py CHECKPOINT_DIR

Prints the seconds of five runs and the peak memory; fails if PyTorch was imported.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time

CODE = """
import sys
from enginesmith.cli.main import cli
cli.main(sys.argv[1:], prog_name="enginesmith", standalone_mode=False)
assert "torch" not in sys.modules
"""


def main() -> None:
    checkpoint, seconds = sys.argv[1], []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder:
            words = ["build", "--checkpoint_dir", checkpoint, "--output_dir", f"{folder}/plan"]
            begin = time.perf_counter()
            command = [sys.executable, "-c", CODE, *words, "--plan_only", "--gpu", "A100"]
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{' '.join(f'{value:.2f}' for value in seconds)} s, peak {peak:.0f} MB")


if __name__ == "__main__":
    main()
