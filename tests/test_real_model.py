"""One true conversion: SmolLM2-135M-Instruct from its package, verified, its figures printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHUNKS, SEQUENCES = 6, 16


@pytest.mark.parametrize(
    ("quant", "kv_cache", "tp", "increase", "kl"),
    [
        ("W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", None, 1, 2.5, 0.02),
        ("W8A8_SQ_PER_TENSOR_PLUGIN", "INT8", 3, 15.0, 0.15),
    ],
)
def test_smollm2(
    quant: str,
    kv_cache: str | None,
    tp: int,
    increase: float,
    kl: float,
    smollm2: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = [str(Path(sys.executable).with_name("enginesmith"))]
    convert = ["convert", "--model_dir", smollm2, "--output_dir", tmp_path / "out", "--quant", quant]
    convert += ["--calib_size", SEQUENCES, "--tp_size", tp]
    convert += ["--kv_cache", kv_cache] if kv_cache else []
    subprocess.run([*program, *map(str, convert)], check=True)
    verify = ["verify", tmp_path / "out", "--reference", smollm2, "--chunks", CHUNKS, "--json"]
    verify += ["--max_ppl_increase", increase]
    done = subprocess.run([*program, *map(str, verify)], capture_output=True, text=True)
    verdict = json.loads(done.stdout)
    figures = verdict["accuracy"]
    with capsys.disabled():
        print(
            f"\n{quant}, KV cache {kv_cache}, tp {tp}: perplexity {figures['perplexity']:.3f} "
            f"(source {figures['reference_perplexity']:.3f}), mean KL {figures['mean_kl']:.4f}, "
            f"top-1 {100 * figures['top1_agreement']:.1f} %"
        )
    assert done.returncode == 0, verdict["failures"]
    assert figures["mean_kl"] < kl
