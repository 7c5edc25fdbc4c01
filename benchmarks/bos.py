"""What a token at the front of every sequence does to static activation ranges and to accuracy.

python benchmarks/bos.py MODEL_DIR WORK_DIR [TOKEN [SEQUENCES CHUNKS]]

The same calibration sequences (64) and held-out chunks (20) of 512 tokens, as they are and with TOKEN (its text; the
tokenizer's BOS token if left out) in front of each, in place of its last token. Prints the largest |activation| that
every group of linears reads, calibrated either way, then the perplexity of W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN
calibrated either way and measured either way.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from enginesmith.convert.sources.folder import Source
from enginesmith.convert.sources.text import read_tokens
from enginesmith.convert.statistics.stream import Calibration
from enginesmith.convert.statistics.wanted import Wanted

QUANT = "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN"
LENGTH = 512
HOW = ("without", "with")


def write_ids(model: str, text: str, sequences: int, token: int, path: Path) -> None:
    """PATH-without.safetensors and PATH-with.safetensors."""
    ids = read_tokens(text, Path(model), sequences, LENGTH, 1 << 30, "text").ids
    front = torch.full((len(ids), 1), token)
    save_file({"input_ids": ids}, f"{path}-without.safetensors")
    save_file({"input_ids": torch.cat((front, ids[:, :-1]), 1)}, f"{path}-with.safetensors")


def ranges(model: str, calib: Path) -> dict[str, float]:
    """The largest |activation| that each group of linears reads, by layer and group."""
    source, found = Source(model), {}
    ids = read_tokens(str(calib), source.folder, 1 << 30, LENGTH, 1 << 30, "text").ids
    embedding = source.embedding()
    calibration = Calibration(source.model, ids, embedding, Wanted(ranges=True), torch.device("cpu"), 0)
    for index in range(source.model.num_hidden_layers):
        for name, inputs in calibration.layer(index, source.layer(index)).inputs.items():
            found[f"{index}.{name}"] = float(inputs.amax.max())
    return found


def command(*words: str | Path) -> str:
    return subprocess.run(["enginesmith", *map(str, words)], check=True, capture_output=True, text=True).stdout


def main(model: str, work: Path, token: str | None = None, sequences: str = "64", chunks: str = "20") -> None:
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    token = token or tokenizer.bos_token
    number = tokenizer.convert_tokens_to_ids(token)
    print(f"{token} is id {number}; the tokenizer begins a prompt with {tokenizer('')['input_ids']}", flush=True)
    write_ids(model, "pydoc", int(sequences), number, work / "calib")
    write_ids(model, "pydoc-heldout", int(chunks), number, work / "held_out")
    with torch.inference_mode():
        without, front = (ranges(model, work / f"calib-{how}.safetensors") for how in HOW)
    print(f"{'group':24s} {'without':>9s} {'with':>9s} {'ratio':>6s}")
    for name, largest in without.items():
        print(f"{name:24s} {largest:9.2f} {front[name]:9.2f} {front[name] / largest:6.2f}", flush=True)
    for calibrated in HOW:
        checkpoint = work / f"calibrated-{calibrated}"
        words = ["convert", "--model_dir", model, "--output_dir", checkpoint, "--quant", QUANT, "--json"]
        command(*words, "--calib", work / f"calib-{calibrated}.safetensors")
        for measured in HOW:
            text = work / f"held_out-{measured}.safetensors"
            a = json.loads(command("verify", checkpoint, "--reference", model, "--text", text, "--json"))["accuracy"]
            print(
                f"calibrated {calibrated}, measured {measured}: perplexity {a['perplexity']:.3f} "
                f"(source {a['reference_perplexity']:.3f}), mean KL {a['mean_kl']:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
