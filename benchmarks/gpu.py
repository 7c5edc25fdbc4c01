"""A random model of Llama-3.1-8B's shape, calibrated and converted on a GPU.

python benchmarks/gpu.py WORK_DIR

Prints seconds, calibration tokens a second, and peak device memory.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from random_model import write

from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions

QUANT = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"


def main(work: Path) -> None:
    source = work / "llama-3.1-8b"
    if not source.exists():
        write(source, "llama-3.1-8b", None)
    for sequences, length in ((64, 512), (128, 2048)):
        output = work / "out"
        shutil.rmtree(output, ignore_errors=True)
        torch.cuda.reset_peak_memory_stats()
        phases: Counter[str] = Counter()
        last = [time.monotonic(), "start"]

        def progress(layer: int, phase: str, tokens: int, last: list = last, phases: Counter = phases) -> None:
            torch.cuda.synchronize()
            now = time.monotonic()
            phases[last[1]] += now - last[0]
            last[:] = [now, phase]

        options = ConvertOptions(
            str(source),
            str(output),
            quant=QUANT,
            device="cuda",
            calib=str(source / "ids.safetensors"),
            calib_size=sequences,
            calib_seq_len=length,
        )
        start = time.monotonic()
        convert(options, progress)
        seconds = time.monotonic() - start
        tokens = sequences * length
        peak = torch.cuda.max_memory_allocated() / 1e9
        print(
            f"{sequences} x {length} tokens on {torch.cuda.get_device_name()}: {seconds:.1f} s in all; calibration "
            f"{phases['calibrate']:.1f} s ({tokens / phases['calibrate']:,.0f} tokens/s through all layers); "
            f"peak device memory {peak:.2f} GB; by phase "
            + ", ".join(f"{name} {spent:.1f} s" for name, spent in phases.most_common()),
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
