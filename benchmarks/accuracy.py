"""Perplexity of every SmoothQuant algorithm with default options, on held-out text.

python benchmarks/accuracy.py MODEL_DIR WORK_DIR [convert's options ...]

64 calibration sequences of 512 tokens from the first half of Python's reference topics, 20 held-out chunks of
512 tokens from the second half; MODEL_DIR is what examples/smollm2.py writes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from enginesmith.convert.scheme import SMOOTHQUANT


def main(model: str, work: Path, options: list[str]) -> None:
    print(f"{'algorithm':40s} {'perplexity':>10s} {'source':>8s} {'mean KL':>8s} {'top-1':>7s} {'convert':>8s}")
    for algo in SMOOTHQUANT:
        checkpoint = work / algo
        shutil.rmtree(checkpoint, ignore_errors=True)
        start = time.monotonic()
        command = ["enginesmith", "convert", "--model_dir", model, "--output_dir", str(checkpoint), "--quant", algo]
        subprocess.run([*command, *options, "--json"], check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        command = ["enginesmith", "verify", str(checkpoint), "--reference", model, "--json"]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        a = result["accuracy"]
        print(
            f"{algo:40s} {a['perplexity']:10.3f} {a['reference_perplexity']:8.3f} {a['mean_kl']:8.4f} "
            f"{100 * a['top1_agreement']:6.1f}% {seconds:6.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
