"""Perplexity of every algorithm with default options, on held-out text.

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

from enginesmith.convert.targets.trtllm.formats import SCHEMES

# SmolLM2's 576 channels are no multiple of 128.
GROUPS = ["--group_size", "64"]
ROWS: list[tuple[str, list[str]]] = [
    *((algo, []) for algo, scheme in SCHEMES.items() if scheme.smooths),
    ("W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", ["--rounding", "gptq"]),
    ("W8A16", []),
    ("W4A16", []),
    ("W4A16_AWQ", GROUPS),
    ("W4A16_AWQ", [*GROUPS, "--rounding", "gptq"]),
    ("W4A16_GPTQ", [*GROUPS, "--rounding", "nearest", "--symmetric"]),
    ("W4A16_GPTQ", [*GROUPS, "--symmetric"]),
    ("W4A16_GPTQ", GROUPS),
    ("W8A16_GPTQ", GROUPS),
    ("FP8", []),
    ("FP8_PER_CHANNEL_PER_TOKEN", []),
]


def main(model: str, work: Path, options: list[str]) -> None:
    print(f"{'algorithm':66s} {'perplexity':>10s} {'source':>8s} {'mean KL':>8s} {'top-1':>7s} {'convert':>8s}")
    for algo, own in ROWS:
        checkpoint = work / "checkpoint"
        shutil.rmtree(checkpoint, ignore_errors=True)
        start = time.monotonic()
        command = ["enginesmith", "convert", "--model_dir", model, "--output_dir", str(checkpoint), "--quant", algo]
        subprocess.run([*command, *own, *options, "--json"], check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        command = ["enginesmith", "verify", str(checkpoint), "--reference", model, "--json"]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        a, name = result["accuracy"], " ".join([algo, *own])
        print(
            f"{name:66s} {a['perplexity']:10.3f} {a['reference_perplexity']:8.3f} {a['mean_kl']:8.4f} "
            f"{100 * a['top1_agreement']:6.1f}% {seconds:6.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
