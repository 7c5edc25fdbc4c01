"""Folders for other runtimes beside their own tools': the same model, tokens, scheme and reader.

python benchmarks/runtimes.py MODEL_DIR WORK_DIR PYTHONS [NAME ...]

PYTHONS names the interpreters of four environments: transformers=PATH,edge=PATH,llmcompressor=PATH,modelopt=PATH (see
reader_transformers.py, edge_onnx.py, runtimes_llmcompressor.py, runtimes_modelopt.py). NAME is a row, such as
enginesmith-w8a8 or llmcompressor-w8a8; without one all rows are made, in order. What a row found is kept in
WORK_DIR/NAME.json and its folder in WORK_DIR/NAME: a row that is there is not made again before NAME.json is removed,
one that was interrupted goes on where it stopped. The table is printed at the end, with all that is there.

Seconds and peak resident memory are those of the whole process that makes the folder: imports, reading, calibration,
quantization, writing. Calibration is on 512 tokens a sequence of the built-in text; perplexity, mean KL and top-1 are
on 20 held-out chunks of 512, against the float32 source in transformers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TOKENS, CALIBRATION, HELD_OUT, VOCABULARY = 512, 64, 20, 1 << 30
READERS = ("transformers", "edge")
CALIBRATION_IDS, HELD_OUT_IDS, LOGITS = "calibration.safetensors", "held-out.safetensors", "logits"


@dataclass(frozen=True)
class Row:
    """One folder.

    Attributes:
        name: its tool, and what it is.
        words: options of `enginesmith convert`, or the job of the tool's script.
        reader: transformers or edge.
        sequences: calibration sequences.
    """

    name: str
    words: str
    reader: str = "transformers"
    sequences: int = CALIBRATION


COMPRESSED, MODELOPT, EDGE = (f"--target {name} --quant" for name in ("compressed-tensors", "modelopt", "edge"))
DYNAMIC, STATIC = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "W8A8_SQ_PER_CHANNEL"
AWQ, GPTQ = "W4A16_AWQ --group_size 64", "W4A16_GPTQ --symmetric --group_size 64"
# The searches of AWQ take some forward passes a candidate: fewer sequences, for everyone.
FEW = 16
ROWS = (
    Row("enginesmith-w8a8", f"{COMPRESSED} {DYNAMIC}"),
    Row("enginesmith-w8a8-gptq", f"{COMPRESSED} {DYNAMIC} --rounding gptq"),
    Row("llmcompressor-w8a8", "w8a8"),
    Row("llmcompressor-w8a8-gptq", "w8a8-gptq"),
    Row("enginesmith-w8a8-static", f"{COMPRESSED} {STATIC}"),
    Row("llmcompressor-w8a8-static", "w8a8-static"),
    Row("enginesmith-w8a16", f"{COMPRESSED} W8A16"),
    Row("llmcompressor-w8a16", "w8a16"),
    Row("enginesmith-fp8", f"{COMPRESSED} FP8"),
    Row("llmcompressor-fp8", "fp8"),
    Row("enginesmith-fp8-dynamic", f"{COMPRESSED} FP8_PER_CHANNEL_PER_TOKEN"),
    Row("llmcompressor-fp8-dynamic", "fp8-dynamic"),
    Row("enginesmith-w4a16-gptq", f"{COMPRESSED} {GPTQ}"),
    Row("llmcompressor-w4a16-gptq", "w4a16-gptq"),
    Row("enginesmith-w4a16-awq", f"{COMPRESSED} {AWQ}", sequences=FEW),
    Row("llmcompressor-w4a16-awq", "w4a16-awq", sequences=FEW),
    Row("enginesmith-edge-w8a8-static", f"{EDGE} {STATIC}", "edge"),
    Row("modelopt-int8-smoothquant", "int8-smoothquant", "edge"),
    Row("enginesmith-edge-fp8", f"{EDGE} FP8", "edge"),
    Row("enginesmith-modelopt-fp8", f"{MODELOPT} FP8", "edge"),
    Row("modelopt-fp8", "fp8", "edge"),
    Row("enginesmith-edge-w4a16-awq", f"{EDGE} {AWQ}", "edge", FEW),
    Row("enginesmith-modelopt-w4a16-awq", f"{MODELOPT} {AWQ}", "edge", FEW),
    Row("modelopt-int4-awq", "int4-awq", "edge", FEW),
    Row("enginesmith-edge-w4a16-gptq", f"{EDGE} {GPTQ}", "edge"),
)


def prepare(model: str, work: Path, pythons: dict[str, str]) -> None:
    """The tokens of every row, and what the float model predicts of them."""
    if not (work / HELD_OUT_IDS).exists():
        from safetensors.torch import save_file

        from enginesmith.convert.sources.text import read_tokens

        for text, sequences, file in (
            ("pydoc", CALIBRATION, CALIBRATION_IDS),
            ("pydoc-heldout", HELD_OUT, HELD_OUT_IDS),
        ):
            ids = read_tokens(text, Path(model), sequences, TOKENS, VOCABULARY, "text").ids
            save_file({"input_ids": ids}, work / file)
    if not (work / "source.json").exists():
        script = str(HERE / "reader_transformers.py")
        command = [pythons["transformers"], script, model, str(work / HELD_OUT_IDS), "--save", str(work / LOGITS)]
        keep(work / "source.json", finished(command))


def made(row: Row, model: str, work: Path, pythons: dict[str, str]) -> dict[str, Any]:
    """Make a row's folder: seconds, peak resident GB and MB written, and what the tool says itself."""
    folder = work / row.name
    shutil.rmtree(folder, ignore_errors=True)
    tool, calibration = row.name.split("-")[0], str(work / CALIBRATION_IDS)
    if tool == "enginesmith":
        command = ["enginesmith", "convert", "--model_dir", model, "--output_dir", str(folder), *row.words.split()]
        command += ["--calib", calibration, "--calib_size", str(row.sequences), "--json"]
        said: dict[str, Any] = {}
        seconds, peak, _ = timed(command)
    else:
        command = [pythons[tool], str(HERE / f"runtimes_{tool}.py"), model, row.words, calibration, str(row.sequences)]
        seconds, peak, output = timed([*command, str(folder)])
        said = json.loads(output.strip().splitlines()[-1])
    written = sum(file.stat().st_size for file in folder.iterdir())
    return {"seconds": seconds, "peak_gb": peak, "written_mb": written / 1e6} | said


def read(row: Row, work: Path, pythons: dict[str, str]) -> dict[str, Any]:
    """What the row's reader computes of its folder."""
    script = "edge_onnx.py" if row.reader == "edge" else "reader_transformers.py"
    command = [pythons[row.reader], str(HERE / script), str(work / row.name), str(work / HELD_OUT_IDS)]
    return finished([*command, "--reference", str(work / LOGITS)])


def timed(command: list[str]) -> tuple[float, float, str]:
    """(seconds, peak resident GB, standard output) of a process."""
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return time.monotonic() - start, usage.ru_maxrss / 1e6, output


def finished(command: list[str]) -> dict[str, Any]:
    """The JSON that a command prints last."""
    return dict(json.loads(timed(command)[2].strip().splitlines()[-1]))


def keep(file: Path, found: dict[str, Any]) -> None:
    file.write_text(json.dumps(found, indent=1), encoding="utf-8")


def read_back(work: Path, row: Row) -> dict[str, Any]:
    """What was kept of a row."""
    file = work / f"{row.name}.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def cells(row: Row, found: dict[str, Any]) -> list[str]:
    """A row of the table; empty where nothing is measured yet."""
    figures = [""] * 6
    if "perplexity" in found:
        figures = [f"{found['perplexity']:.3f}", f"{found['mean_kl']:.4f}", f"{100 * found['top1_agreement']:.1f} %"]
        figures += [f"{found['seconds']:.0f}", f"{found['peak_gb']:.2f} GB", f"{found['written_mb']:.0f} MB"]
    return [f"{row.name.split('-')[0]} `{row.words}`", *figures]


def table(work: Path) -> None:
    for reader in READERS:
        heads = (f"read by {reader}", "perplexity", "mean KL", "top-1", "seconds", "peak resident", "written")
        print(f"\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
        for row in ROWS:
            if row.reader == reader:
                print(f"| {' | '.join(cells(row, read_back(work, row)))} |")


def main(model: str, work: Path, pythons: dict[str, str], names: list[str]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    prepare(model, work, pythons)
    for row in ROWS:
        file, found = work / f"{row.name}.json", read_back(work, row)
        if (names and row.name not in names) or "perplexity" in found:
            continue
        if not found:
            found = made(row, model, work, pythons)
            keep(file, found)
        keep(file, found | read(row, work, pythons))
    table(work)


if __name__ == "__main__":
    if len(sys.argv) < 4 or not set(sys.argv[4:]) <= {row.name for row in ROWS}:
        sys.exit(f"{__doc__}\nrows: {' '.join(row.name for row in ROWS)}")
    main(sys.argv[1], Path(sys.argv[2]), dict(pair.split("=", 1) for pair in sys.argv[3].split(",")), sys.argv[4:])
