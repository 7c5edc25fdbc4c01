"""What a quantized KV cache costs with one scale for keys and values, and what balancing them gives back.

    python benchmarks/kv_cache.py MODEL_DIR WORK_DIR [convert's options ...]

Mean KL on held-out text, as benchmarks/accuracy.py measures it. Values are balanced by a power of two that float does
not notice (convert/quantize/kv_cache.py); --no_fold leaves them as they are.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

CACHES = {"none": [], "INT8, as it is": ["--no_fold"], "INT8, balanced": [], "FP8": []}
QUANTS = ("none", "W8A16", "FP8")


def kl(model: str, checkpoint: Path, words: list[str]) -> float:
    shutil.rmtree(checkpoint, ignore_errors=True)
    command = ["enginesmith", "convert", "--model_dir", model, "--output_dir", str(checkpoint), *words, "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    command = ["enginesmith", "verify", str(checkpoint), "--reference", model, "--json"]
    verdict = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return float(verdict["accuracy"]["mean_kl"])


def main(model: str, work: Path, options: list[str]) -> None:
    print(f"{'algorithm':12s}" + "".join(f"{name:>16s}" for name in CACHES))
    for quant in QUANTS:
        row = f"{quant:12s}"
        for name, own in CACHES.items():
            words = ["--quant", quant, "--kv_cache", name.partition(",")[0], *own, *options]
            row += f"{kl(model, work / 'checkpoint', words):16.5f}"
        print(row, flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
