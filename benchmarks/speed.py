"""Time of a whole conversion beside its floor, and beside NVIDIA ModelOpt, in one run.

python benchmarks/speed.py MODEL_DIR WORK_DIR [PYTHON_WITH_MODELOPT]

The floor: a plain bfloat16 forward pass of transformers' model over the same 64 x 512 tokens, plus reading the
source once and writing the checkpoint once. Tokens are those of MODEL_DIR/ids.safetensors if it is there, else the
first half of Python's reference topics. The conversion is timed inside one process, imports left out for all.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.sources.text import read_tokens

QUANT = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"
ROUNDS = 2


def forward_pass(model_dir: str, calib: str) -> float:
    """Seconds of the plain pass, the faster of batches of 4 and of 1."""
    ids = read_tokens(calib, Path(model_dir), 64, 512, 1 << 30, "--calib").ids
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()
    best = float("inf")
    with torch.inference_mode():
        for batch in (4, 1):
            model(ids[:batch], use_cache=False)
            start = time.monotonic()
            for piece in ids.split(batch):
                model(piece, use_cache=False)
            best = min(best, time.monotonic() - start)
    return best


def copy(source: Path, target: Path) -> float:
    """Seconds to read and write a folder's bytes once."""
    shutil.rmtree(target, ignore_errors=True)
    start = time.monotonic()
    shutil.copytree(source, target)
    return time.monotonic() - start


def main(model_dir: str, work: Path, peer: str | None) -> None:
    checkpoint = work / "speed"
    ready = Path(model_dir) / "ids.safetensors"
    calib = str(ready) if ready.exists() else "pydoc"
    ours, floors = [], []
    for _ in range(ROUNDS):
        shutil.rmtree(checkpoint, ignore_errors=True)
        start = time.monotonic()
        convert(ConvertOptions(model_dir, str(checkpoint), quant=QUANT, device="cpu", calib=calib))
        ours.append(time.monotonic() - start)
        forward = forward_pass(model_dir, calib)
        files = copy(Path(model_dir), work / "copy") + copy(checkpoint, work / "copy")
        floors.append(forward + files)
        print(f"convert {ours[-1]:.1f} s; floor {floors[-1]:.1f} s (forward {forward:.1f}, files {files:.1f})")
    print(f"convert / floor: {min(ours) / min(floors):.2f}")
    if peer:
        for dtype in ("float32", "bfloat16"):
            script = str(Path(__file__).with_name("peer_modelopt.py"))
            command = [peer, script, model_dir, "smoothquant", str(work / f"modelopt-{dtype}"), dtype]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            line = result.stdout.strip().splitlines()[-1]
            total = float(line.split()[-2])
            print(f"ModelOpt, {dtype}: {line}; convert / ModelOpt: {min(ours) / total:.2f}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
