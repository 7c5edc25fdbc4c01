"""Are checkpoints, plans and verdicts what an older commit made of them, byte for byte?

    python benchmarks/same_bytes.py COMMIT [WORD ...]

Small random models (Llama and Mistral, float16 and bfloat16, biases, tied, grouped heads, every rope type) and the
ready-made folders of tests/data are converted by this tree and by COMMIT's, every algorithm with tensor and pipeline
parallelism, KV caches and mixed precision; each checkpoint is planned. What differs is listed, file by file, with the
largest difference of its tensors; versions and hashes in a manifest are not compared. WORDs choose cases by name. Exit
code 1 if something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

ROOT = Path(__file__).parent.parent
ALGORITHMS = [
    "none",
    "W8A8_SQ_PER_CHANNEL",
    "W8A8_SQ_PER_TENSOR_PLUGIN",
    "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN",
    "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN",
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
    "W8A16",
    "W4A16",
    "W4A16_AWQ",
    "W4A8_AWQ",
    "W4A16_GPTQ",
    "W8A16_GPTQ",
    "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN",
    "W4A8_QSERVE_PER_GROUP",
    "W4A8_QSERVE_PER_CHANNEL",
]
LAYOUTS = {
    "tp1": [], "tp2": ["--tp_size", "2"], "pp2": ["--pp_size", "2"], "int8 cache": ["--kv_cache", "INT8"],
    "fp8 cache": ["--kv_cache", "FP8"], "tp2 int8 cache": ["--tp_size", "2", "--kv_cache", "INT8"],
}  # fmt: skip
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
ROPES = {
    "linear": {"factor": 2.0}, "dynamic": {"factor": 2.0}, "llama3": {"factor": 8.0, **LLAMA3},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
}  # fmt: skip
SIZES = {
    "vocab_size": 96, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
# Run in either tree, whose packages are on its path: commands from standard input, one JSON list a line.
RUNNER = """
import contextlib, io, json, sys
from enginesmith.cli.main import main
for line in sys.stdin:
    sys.argv, said = ["enginesmith", *json.loads(line)], io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            main()
    except SystemExit as stopped:
        if stopped.code:
            print(stopped.code, *sys.argv, said.getvalue(), file=sys.stderr)
"""


def write_model(folder: Path, kind: str = "llama", dtype: torch.dtype = torch.float16, **changes: Any) -> None:
    """A random model with a few channels that stand out."""
    torch.manual_seed(len(str(folder.name)))
    config, model = (MistralConfig, MistralForCausalLM) if kind == "mistral" else (LlamaConfig, LlamaForCausalLM)
    made = model(config(**SIZES | changes)).to(dtype)
    for name, weight in made.named_parameters():
        if name.endswith("norm.weight"):
            weight.data[::37] *= 8
        elif name.endswith("bias"):
            weight.data.normal_(0, 0.3)
    made.save_pretrained(folder)


def models(folder: Path) -> dict[str, Path]:
    """Every model, written below a folder."""
    write_model(folder / "llama")
    write_model(folder / "bfloat16", dtype=torch.bfloat16, tie_word_embeddings=True)
    write_model(folder / "biases", attention_bias=True, mlp_bias=True, dtype=torch.float32)
    write_model(folder / "mistral", "mistral", sliding_window=64, head_dim=32)
    for name, rope in ROPES.items():
        write_model(folder / name, rope_parameters={"rope_type": name, "rope_theta": 5000.0, **rope})
    made = {path.name: path for path in folder.iterdir()}
    return made | {path.name: path for path in sorted((ROOT / "tests/data/readymade").iterdir()) if path.is_dir()}


def cases(made: dict[str, Path]) -> dict[str, list[str]]:
    """The words of every conversion, but for where it writes and what it calibrates on."""
    found: dict[str, list[str]] = {}
    for algorithm in ALGORITHMS:
        for layout, words in LAYOUTS.items():
            found[f"llama {algorithm} {layout}"] = [str(made["llama"]), "--quant", algorithm, *words]
        for name in ("bfloat16", "biases"):
            found[f"{name} {algorithm}"] = [str(made[name]), "--quant", algorithm, "--tp_size", "2"]
    for name in ("mistral", *ROPES):
        for algorithm in ("none", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "W4A16_GPTQ"):
            found[f"{name} {algorithm}"] = [str(made[name]), "--quant", algorithm]
    for name, path in made.items():
        if path.is_relative_to(ROOT):
            found[f"ready-made {name}"] = [str(path)]
    for name, words in {
        "mixed": ["--quant", "W4A16_AWQ", "--quant_layer", "*.1.mlp*=W8A16", "--exclude", "*.0.self_attn*"],
        "mixed smoothquant": ["--quant", "W8A8_SQ_PER_TENSOR_PLUGIN", "--quant_layer", "*.1.mlp*=FP8"],
        "alpha": ["--quant", "W8A8_SQ_PER_TENSOR_PLUGIN", "--alpha", "0.5", "--no-fold", "--no-rotate"],
        "rotated": ["--quant", "W4A16_AWQ", "--rotate"],
        "gptq everywhere": ["--quant", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "--rounding", "gptq"],
        "symmetric": ["--quant", "W4A16_GPTQ", "--symmetric", "--sm", "90", "--group_size", "64"],
        "propagated": ["--quant", "W4A16_AWQ", "--propagate", "quantized"],
        "W4A16_GPTQ on float": ["--quant", "W4A16_GPTQ", "--propagate", "float", "--group_size", "64"],
        "W8A16_GPTQ on float": ["--quant", "W8A16_GPTQ", "--propagate", "float", "--group_size", "64"],
        "AWQ rounded by GPTQ on float": ["--quant", "W4A16_AWQ", "--rounding", "gptq", "--propagate", "float"],
        "W8A16 rounded by GPTQ on float": ["--quant", "W8A16", "--rounding", "gptq", "--propagate", "float"],
    }.items():
        found[name] = [str(made["llama"]), *words]
    return found


def run(tree: Path, commands: list[list[str]], scratch: Path) -> None:
    """Run commands with one tree's packages."""
    site = scratch / f"site-{tree.name}"
    (site / "enginesmith").mkdir(parents=True)
    for package in ("build", "cli", "convert", "plugins"):
        (site / "enginesmith" / package).symlink_to((tree / package).resolve())
    for file in (tree / "api").glob("*.py"):  # the package itself, which older trees have not
        (site / "enginesmith" / file.name).symlink_to(file.resolve())
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    lines = "".join(json.dumps(words) + "\n" for words in commands)
    subprocess.run([sys.executable, "-c", RUNNER], input=lines, text=True, env=environment, stdout=subprocess.DEVNULL)


def difference(ours: Path, theirs: Path) -> str:
    """How two files of one name differ; empty where they do not."""
    if not (ours.exists() and theirs.exists()):
        return f"only in {'this tree' if ours.exists() else 'the other'}"
    if ours.name == "enginesmith.json":
        said, other = (comparable(json.loads(path.read_text())) for path in (ours, theirs))
        return ", ".join(key for key in said.keys() | other.keys() if said.get(key) != other.get(key))
    if digest(ours) == digest(theirs):
        return ""
    if ours.suffix != ".safetensors":
        return "differs"
    mine, other_tensors = load_file(ours), load_file(theirs)
    if {n: (t.shape, t.dtype) for n, t in mine.items()} != {n: (t.shape, t.dtype) for n, t in other_tensors.items()}:
        return "other tensors"
    # Packed integers are kept under float16's name, where some are no numbers.
    unlike = [name for name, tensor in mine.items() if not same_bits(tensor, other_tensors[name])]
    apart = {name: float((mine[name].float() - other_tensors[name].float()).abs().max()) for name in unlike}
    return ", ".join(f"{name} by {size:.3g}" for name, size in apart.items()) or "header"


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8))


def comparable(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest without what every run has anew."""
    plain = {key: value for key, value in manifest.items() if key not in ("versions", "files", "source")}
    return {key: value for key, value in plain.items() if not (isinstance(value, dict) and "sha256" in value)}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        tree = scratch / "older"
        packed = subprocess.run(["git", "archive", options.commit], cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(tree, filter="data")
        (scratch / "models").mkdir()
        chosen = {
            name: words
            for name, words in cases(models(scratch / "models")).items()
            if all(word in name for word in options.words)
        }
        ids = scratch / "ids.safetensors"
        save_file({"input_ids": torch.randint(96, (8, 64), generator=torch.Generator().manual_seed(0))}, ids)
        calib = ["--calib", str(ids), "--calib_size", "8", "--calib_seq_len", "64"]
        for side, code in (("ours", ROOT), ("theirs", tree)):
            (scratch / side).mkdir()
            commands = []
            for number, words in enumerate(chosen.values()):
                made, planned = scratch / side / f"{number}", scratch / side / f"{number}-plan"
                needs_text = not any("readymade" in word for word in words)
                commands.append(["convert", "--output_dir", str(made), "--model_dir", *words, *calib * needs_text])
                gpu = "H100" if "FP8" in " ".join(words) or "W4A8" in " ".join(words) else "A100"
                commands.append(["build", "--checkpoint_dir", str(made), "--output_dir", str(planned), "--plan_only",
                                 "--gpu", gpu, "--max_seq_len", "128"])  # fmt: skip
            run(code, commands, scratch)
        unlike = 0
        for number, name in enumerate(chosen):
            sides = [scratch / side for side in ("ours", "theirs")]
            held = {
                str(path.relative_to(side)) for side in sides for path in side.glob(f"{number}*/*") if path.is_file()
                and path.parent.name in (f"{number}", f"{number}-plan")
            }  # fmt: skip
            found = {file: difference(*(side / file for side in sides)) for file in sorted(held)}
            lines = [f"  {file.partition('/')[2]}: {how}" for file, how in found.items() if how]
            unlike += bool(lines)
            print("\n".join([f"{name}: {'differs' if lines else 'the same' if held else 'refused by both'}", *lines]))
        print(f"{len(chosen) - unlike} of {len(chosen)} the same")
    sys.exit(1 if unlike else 0)


if __name__ == "__main__":
    main()
