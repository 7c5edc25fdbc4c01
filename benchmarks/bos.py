"""What a token at the front of every sequence does to static activation ranges and to accuracy.

python benchmarks/bos.py MODEL_DIR WORK_DIR [TOKEN]

The same 64 x 512 calibration tokens and 20 x 512 held-out ones, as they are and with TOKEN (its text; the tokenizer's
BOS token if left out) in front of every sequence in place of its last token. Prints the largest |activation| of every
group of linears, calibrated either way, then the perplexity of W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN calibrated
either way and measured either way.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer

from enginesmith.convert.text import read_tokens

QUANT = "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN"
TEXTS = {"calib": ("pydoc", 64), "held_out": ("pydoc-heldout", 20)}


def write_ids(model: str, work: Path, token: int) -> None:
    """WORK/{calib,held_out}-{without,with}.safetensors."""
    for name, (source, sequences) in TEXTS.items():
        ids = read_tokens(source, Path(model), sequences, 512, 1 << 30, "text").ids
        front = torch.full((len(ids), 1), token)
        save_file({"input_ids": ids}, work / f"{name}-without.safetensors")
        save_file({"input_ids": torch.cat((front, ids[:, :-1]), 1)}, work / f"{name}-with.safetensors")


def command(*words: str | Path) -> str:
    return subprocess.run(["enginesmith", *map(str, words)], check=True, capture_output=True, text=True).stdout


def converted(model: str, work: Path, how: str) -> dict[str, float]:
    """Make WORK/how, a checkpoint; returns the range of each group of each layer."""
    statistics = work / f"{how}.stats"
    for old in (statistics, work / how):
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    words = ["convert", "--model_dir", model, "--output_dir", work / how, "--quant", QUANT, "--save_stats", statistics]
    command(*words, "--calib", work / f"calib-{how}.safetensors")
    with safe_open(statistics, framework="pt") as file:
        names = [name for name in file.keys() if name.endswith(".amax")]  # noqa: SIM118
        return {name.removesuffix(".amax"): float(file.get_tensor(name).max()) for name in names}


def main(model: str, work: Path, token: str | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    token = token or tokenizer.bos_token
    print(f"{token}, id {tokenizer.convert_tokens_to_ids(token)}; added by the tokenizer: {tokenizer('')['input_ids']}")
    write_ids(model, work, tokenizer.convert_tokens_to_ids(token))
    ranges = {how: converted(model, work, how) for how in ("without", "with")}
    print(f"{'group':32s} {'without':>9s} {'with':>9s} {'ratio':>6s}")
    for name, without in sorted(ranges["without"].items(), key=lambda item: int(item[0].split(".")[1])):
        print(f"{name:32s} {without:9.2f} {ranges['with'][name]:9.2f} {ranges['with'][name] / without:6.2f}")
    for calibrated in ("without", "with"):
        for measured in ("without", "with"):
            text = work / f"held_out-{measured}.safetensors"
            found = json.loads(command("verify", work / calibrated, "--reference", model, "--text", text, "--json"))
            a = found["accuracy"]
            print(
                f"calibrated {calibrated}, measured {measured}: perplexity {a['perplexity']:.3f} "
                f"(source {a['reference_perplexity']:.3f}), mean KL {a['mean_kl']:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
