"""Peak resident memory of a conversion: does it grow with depth, and does a 7B model fit in 5 GB?

python benchmarks/memory.py WORK_DIR depth        a random 24-layer model beside a 6-layer one of the same width
python benchmarks/memory.py WORK_DIR 7b           a random model of Llama-2-7B's shape (13.5 GB of float16)

WORK_DIR needs room for the models: 2 GB and 21 GB. Memory is the kernel's own maximum of the whole process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from random_model import write

QUANT = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"


def convert(model: Path, output: Path, *options: str) -> tuple[float, float]:
    """(seconds, peak resident GB) of one ``enginesmith convert``."""
    shutil.rmtree(output, ignore_errors=True)
    command = ["enginesmith", "convert", "--model_dir", model, "--output_dir", output, "--quant", QUANT]
    command += ["--calib", model / "ids.safetensors", "--device", "cpu", *options]
    start = time.monotonic()
    process = subprocess.Popen([str(word) for word in command])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"convert failed: {model}")
    return time.monotonic() - start, usage.ru_maxrss / 1e6


def model(work: Path, name: str, shape: str, layers: int | None) -> Path:
    if not (work / name).exists():
        write(work / name, shape, layers)
    return work / name


def main(work: Path, which: str) -> None:
    if which == "depth":
        peaks = {}
        for layers in (6, 24):
            source = model(work, f"narrow-{layers}", "narrow", layers)
            seconds, peaks[layers] = convert(source, work / "out", "--calib_size", "16")
            print(f"{layers:3d} layers: {seconds:6.1f} s, peak {peaks[layers]:.3f} GB")
        print(f"24 layers / 6 layers: {peaks[24] / peaks[6]:.3f}")
    else:
        source = model(work, "llama-2-7b", "llama-2-7b", None)
        seconds, peak = convert(source, work / "out", "--calib_size", os.environ.get("CALIB_SIZE", "64"))
        print(f"Llama-2-7B's shape: {seconds:.0f} s, peak {peak:.2f} GB")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[2] not in ("depth", "7b"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2])
