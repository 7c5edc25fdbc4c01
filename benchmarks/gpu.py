"""A random model of Llama-3.1-8B's shape, converted and verified on a GPU, each run a process of its own.

python benchmarks/gpu.py WORK_DIR [RUN ...] [--out_dir DIR]

A run is a QuantAlgo, or "verify" for the checkpoint of the SmoothQuant run before it; all four without any. Prints
seconds of the whole process, interpreter and imports included, and by phase; peak device memory, and peak resident
memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

SMOOTHQUANT, VERIFY = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "verify"
RUNS = (SMOOTHQUANT, VERIFY, "W4A16_AWQ", "W4A16_GPTQ")


class Phases:
    """Seconds by phase; each lasts until another is named.

    Args:
        start: when the first one began, by time.monotonic().
    """

    def __init__(self, start: float):
        self.seconds: Counter[str] = Counter()
        self.name, self.since = "imports", start

    def begin(self, name: str) -> None:
        """The device's work belongs to the phase that ends."""
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.monotonic()
        self.seconds[self.name] += now - self.since
        self.name, self.since = name, now

    def of(self, owner: Any, function: str, name: str) -> None:
        """Make a function of a class or a module a phase of its own, inside whichever calls it."""
        inner = getattr(owner, function)

        def timed(*args: Any, **named: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return inner(*args, **named)  # beside the phases
            outer = self.name
            self.begin(name)
            try:
                return inner(*args, **named)
            finally:
                self.begin(outer)

        setattr(owner, function, timed)


def convert(phases: Phases, args: argparse.Namespace) -> None:
    """One conversion."""
    from enginesmith import ConvertOptions
    from enginesmith import convert as run
    from enginesmith.convert.files.disk import Hashes
    from enginesmith.convert.files.staging import Staging
    from enginesmith.convert.job import conversion  # noqa: F401 (its imports are this phase's)

    phases.of(Hashes, "wait", "hash")
    phases.of(Staging, "commit", "commit")
    phases.begin("check")
    options = ConvertOptions(
        str(args.source),
        str(args.checkpoint),
        quant=args.run,
        device=args.device,
        calib=str(args.source / "ids.safetensors"),
        calib_size=args.sequences,
        calib_seq_len=args.length,
    )
    run(options, lambda layer, phase, tokens: phases.begin(phase))


def verify(phases: Phases, args: argparse.Namespace) -> None:
    """The proof of what a conversion made."""
    from enginesmith import VerifyOptions
    from enginesmith import verify as run
    from enginesmith.convert.prove import execution
    from enginesmith.convert.prove import verify as structure
    from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
    from enginesmith.convert.sources.folder import Source
    from enginesmith.convert.targets.trtllm.manifest import Manifest

    phases.of(structure, "check_same_files", "hash source")
    phases.of(structure, "structure_problems", "structure")
    phases.of(Manifest, "problems", "hash checkpoint")
    phases.of(Source, "layer", "read source")
    phases.of(execution.Reference, "layer", "source")
    phases.of(Checkpoint, "layer", "read checkpoint")
    phases.of(execution.Execution, "layer", "checkpoint")
    phases.of(execution.Execution, "accuracy", "logits")
    phases.begin("check")
    options = VerifyOptions(str(args.source / "ids.safetensors"), args.chunks, args.seq_len, device=args.device)
    verdict = run(args.checkpoint, args.source, options)
    assert verdict.ok, verdict.failures
    print(f"perplexity {verdict.accuracy.perplexity:.2f}, KL {verdict.accuracy.kl:.5f}", file=sys.stderr)


def child(args: argparse.Namespace) -> None:
    """One run; the last line says what it took."""
    import torch

    phases = Phases(args.child)
    (verify if args.run == VERIFY else convert)(phases, args)
    phases.begin("exit")
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": phases.seconds, "device": device, "resident": resident, "since": phases.since}))


def measured(args: argparse.Namespace, run: str) -> str:
    """Start a run, and say what it took."""
    handed = ("out_dir", "shape", "sequences", "length", "chunks", "seq_len", "device")
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, str(args.work), run, f"--child={start}"]
        + [f"--{name}={getattr(args, name)}" for name in handed],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    end = time.monotonic()
    told = json.loads(done.stdout.splitlines()[-1])
    seconds = {name: spent for name, spent in told["seconds"].items() if spent >= 0.05}
    seconds["exit"] = end - told["since"]
    return (
        f"{run}: {end - start:.1f} s; "
        + ", ".join(f"{name} {spent:.1f}" for name, spent in seconds.items())
        + f"; peak device memory {told['device'] / 1e9:.2f} GB, resident {told['resident'] / 1e9:.2f} GB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK_DIR", help="Where the model lies, or is made.")
    parser.add_argument("runs", nargs="*", metavar="RUN", default=RUNS)
    parser.add_argument("--out_dir", type=Path, help="Where checkpoints are made, if not in WORK_DIR.")
    parser.add_argument("--shape", default="llama-3.1-8b")
    parser.add_argument("--layers", type=int, help="Of a model that is made, if not all.")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--seq_len", type=int, default=512)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out_dir = args.out_dir or args.work
    args.source, args.run = args.work / args.shape, args.runs[0]
    args.checkpoint = args.out_dir / (SMOOTHQUANT if args.run == VERIFY else args.run)
    if args.child is not None:
        child(args)
        return
    if not args.source.exists():
        from random_model import write

        start = time.monotonic()
        write(args.source, args.shape, args.layers)
        print(f"the model was written in {time.monotonic() - start:.1f} s", flush=True)
    for run in args.runs:
        if run != VERIFY:
            shutil.rmtree(args.out_dir / run, ignore_errors=True)
        print(measured(args, run), flush=True)
        if run not in (SMOOTHQUANT, VERIFY):
            shutil.rmtree(args.out_dir / run)


if __name__ == "__main__":
    main()
