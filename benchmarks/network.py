"""Plans go through upstream's own network builder, and `enginesmith plugins` counts what it counts.

    python benchmarks/network.py MODEL_DIR --check "PYTHON network_check.py" --work DIR

Converts MODEL_DIR for every SmoothQuant algorithm, KV cache none and INT8, tp 1 and 3, pp 1 and 2, plans it for
TensorRT-LLM 0.16 on an A100, and hands every rank to the checker: a program that takes CHECKPOINT --build_config FILE
--rank R --strict --compile --json FILE, runs TensorRT-LLM 0.16's builder up to the finished network, and writes the
plugin nodes it found. Calibration is short, for structure is all that this looks at.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
from itertools import product
from pathlib import Path

from enginesmith.build.checkpoint_folder import CheckpointFolder
from enginesmith.build.gpus import find as find_gpu
from enginesmith.build.network import rank_nodes, totals
from enginesmith.build.plan import make_plan
from enginesmith.build.releases import find as find_release
from enginesmith.build.wishes import Wishes
from enginesmith.convert.files.disk import write_json
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.targets.trtllm.formats import SCHEMES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir")
    parser.add_argument("--check", required=True, help="the checker's command")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    options = parser.parse_args()
    failed = checked = 0
    smoothed = [name for name, scheme in SCHEMES.items() if scheme.smooths]
    for algorithm, cache, tp, pp in product(smoothed, (None, "INT8"), (1, 3), (1, 2)):
        folder = options.work / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        settings = ConvertOptions(
            options.model_dir, str(folder), quant=algorithm, kv_cache=cache, tp_size=tp, pp_size=pp, alpha=0.5,
            act_range="absmax", rotate=False, calib_size=2, calib_seq_len=64,
        )  # fmt: skip
        convert(settings)
        checkpoint = CheckpointFolder(folder)
        plan = make_plan(checkpoint, find_release("0.16.0"), find_gpu("A100"), Wishes({}))
        write_json(options.work / "build_config.json", plan.build_config)
        for rank in range(checkpoint.world_size):
            checked += 1
            problem = check(options.check, options.work, rank, totals(rank_nodes(checkpoint, rank)))
            failed += problem is not None
            print(f"{algorithm} kv {cache} tp {tp} pp {pp} rank {rank}: {problem or 'as planned'}", flush=True)
    print(f"{checked} networks, {failed} not as planned")


def check(command: str, work: Path, rank: int, ours: dict[str, int]) -> str | None:
    """What the checker finds wrong with one rank, or where its node counts are not ours."""
    report = work / "report.json"
    report.unlink(missing_ok=True)
    words = [*shlex.split(command), str(work / "checkpoint"), "--build_config", str(work / "build_config.json")]
    words += ["--rank", str(rank), "--strict", "--compile", "--json", str(report)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode or not report.exists():
        return (done.stdout + done.stderr).strip().splitlines()[-1]
    theirs = {name: found["total"] for name, found in json.loads(report.read_text())["plugins"].items()}
    return None if theirs == ours else f"upstream has {theirs}, we print {ours}"


if __name__ == "__main__":
    main()
