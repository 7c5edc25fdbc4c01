"""Seconds and perplexity beside ModelOpt and llm-compressor: one run, one after another, the same tokens.

python benchmarks/peers.py MODEL_DIR WORK_DIR PYTHON_WITH_MODELOPT PYTHON_WITH_LLMCOMPRESSOR

Ours is the whole process of `enginesmith convert`: imports, reading, calibration, quantization, writing. A peer's
seconds are those of calibration and quantization alone; imports, loading and writing are left out. Calibration
is on 512 tokens a sequence of the built-in text, perplexity on 20 held-out chunks of 512: ours of what `enginesmith
verify` executes, a peer's of the quantized model it leaves in transformers, both float32 otherwise.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from enginesmith.convert.sources.text import read_tokens

TOKENS, CHUNKS, VOCABULARY = 512, 20, 1 << 30


@dataclass(frozen=True)
class Row:
    """One job: the options of `convert`, and the peer's script with its job.

    Attributes:
        sequences: calibration sequences.
        asked: the most that ours may take of the peer's seconds, or None.
    """

    options: str
    sequences: int
    script: str
    job: str
    asked: float | None


ROWS = (
    Row("W4A16_AWQ --group_size 64", 16, "peer_modelopt.py", "awq", 1 / 20),
    Row("W4A16_GPTQ --symmetric --group_size 64", 64, "peer_llmcompressor.py", "gptq", 1 / 4),
    Row("W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN --rounding gptq", 64, "peer_llmcompressor.py", "smoothquant", None),
)


def tokens(work: Path, model: str, text: str, sequences: int) -> str:
    """The file with the first sequences of a text."""
    path = work / f"{text}-{sequences}.safetensors"
    save_file({"input_ids": read_tokens(text, Path(model), sequences, TOKENS, VOCABULARY, "text").ids}, path)
    return str(path)


def ours(model: str, work: Path, row: Row, calibration: str, held_out: str) -> tuple[float, float]:
    """(seconds, perplexity) of `enginesmith convert`."""
    checkpoint = work / "checkpoint"
    shutil.rmtree(checkpoint, ignore_errors=True)
    command = ["enginesmith", "convert", "--model_dir", model, "--output_dir", str(checkpoint), "--json", "--quant"]
    command += [*row.options.split(), "--calib", calibration, "--calib_size", str(row.sequences)]
    start = time.monotonic()
    last_line(command)
    seconds = time.monotonic() - start
    command = ["enginesmith", "verify", str(checkpoint), "--reference", model, "--text", held_out, "--json"]
    return seconds, json.loads(last_line(command))["accuracy"]["perplexity"]


def peer(python: str, model: str, row: Row, calibration: str, held_out: str) -> tuple[float, float]:
    """(seconds, perplexity) of a peer's script, in its own environment."""
    script = str(Path(__file__).with_name(row.script))
    found = json.loads(last_line([python, script, model, row.job, calibration, held_out]))
    return found["seconds"], found["perplexity"]


def last_line(command: list[str]) -> str:
    """What a command prints last; its complaints are shown if it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stderr[-4000:]}")
    return result.stdout.strip().splitlines()[-1]


def main(model: str, work: Path, pythons: dict[str, str]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    held_out = tokens(work, model, "pydoc-heldout", CHUNKS)
    print(f"{'ours':54s} {'seconds':>7s} {'ppl':>7s}  {'peer':34s} {'seconds':>7s} {'ppl':>7s}  ratio (asked)")
    for row in ROWS:
        calibration = tokens(work, model, "pydoc", row.sequences)
        seconds, own = ours(model, work, row, calibration, held_out)
        theirs, found = peer(pythons[row.script], model, row, calibration, held_out)
        asked = "" if row.asked is None else f" ({row.asked:.2f})"
        print(
            f"{row.options:54s} {seconds:7.1f} {own:7.3f}  {f'{row.script} {row.job}':34s} {theirs:7.1f} {found:7.3f}"
            f"  {seconds / theirs:.3f}{asked}",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]), {"peer_modelopt.py": sys.argv[3], "peer_llmcompressor.py": sys.argv[4]})
