"""Command lines that answer at once, the folders that they need, and what they answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.models.shapes import hugging_face_shapes
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.targets.trtllm.layout import rank_tensors

from .build_folders import CONFIG, write_checkpoint
from .conftest import DATA, TINY

# Shape and dtype of a tensor.
Form = tuple[list[int], str]
SQ = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"


@dataclass(frozen=True)
class Start:
    """A command line.

    Attributes:
        words: what is typed in the folder of ``write_folders``.
        code: the exit code.
        said: words of the answer, on either stream.
    """

    words: str
    code: int
    said: str


HELP = [Start(f"{name} --help".strip(), 0, "Usage: enginesmith") for name in (
    "", "convert", "families", "verify", "evaluate", "compare", "plugins", "build", "triton", "run", "check",
    "check-engine",
)]  # fmt: skip
USAGE = [
    Start("", 2, "Commands:"),
    Start("nothing", 2, "No such command 'nothing'"),
    *(Start(f"{name} --no_such_option", 2, "No such option") for name in (
        "convert", "families", "verify", "evaluate", "compare", "plugins", "build", "triton", "run", "check",
        "check-engine",
    )),
    Start("convert", 2, "Missing option '--model_dir'"),
    Start("verify", 2, "Missing argument 'CHECKPOINT_DIR'"),
    Start("compare --model_dir model", 2, "Missing option '--quant'"),
    Start("verify checkpoint --max_ppl_increase 2", 2, "--max_ppl_increase needs --reference"),
    Start("verify checkpoint --chunks 0", 2, "--chunks"),
    Start("evaluate checkpoint", 2, "Missing option '--tasks'"),
    Start("evaluate checkpoint --tasks a --limit 0", 2, "--limit is 0"),
]  # fmt: skip
CONVERT = [
    Start(f"convert --output_dir out {words}", 2, said)
    for words, said in (
        ("--model_dir missing", "--model_dir: missing is not a folder"),
        ("--model_dir empty", "no config.json"),
        ("--model_dir pickled", "only pickled weights found"),
        ("--model_dir architecture", "SomethingForCausalLM"),
        ("--model_dir value", "hidden_act"),
        ("--model_dir rope", "rope type 'colour' is not supported"),
        ("--model_dir whole", "not a whole safetensors file"),
        ("--model_dir lacking", "model.norm.weight"),
        ("--model_dir more", "is not part of LlamaForCausalLM"),
        ("--model_dir dtype", "I32"),
        ("--model_dir shape", "[63]"),
        ("--model_dir quantized", "already quantized ('bitsandbytes')"),
        ("--model_dir model --quant W9", "--quant"),
        ("--model_dir model --dtype float8", "--dtype"),
        ("--model_dir model --tp_size 0", "--tp_size"),
        ("--model_dir model --tp_size 3", "tp_size 3"),
        ("--model_dir model --pp_size 5", "pp_size 5"),
        ("--model_dir model --device colour", "--device: 'colour' is no device"),
        ("--model_dir model --alpha 0.5", "--alpha belongs to SmoothQuant"),
        ("--model_dir model --smoothquant 0.5 --quant W8A16", "both name a quantization"),
        ("--model_dir model --use_weight_only --quant W8A16", "give one"),
        ("--model_dir model --per_token", "--per_token and --per_channel go with --smoothquant"),
        ("--model_dir model --int8_kv_cache --kv_cache FP8", "contradict each other"),
        ("--model_dir model --stats one --save_stats two", "--stats and --save_stats are both given"),
        ("--model_dir model --propagate quantized --stats one", "--propagate quantized needs a forward pass"),
        (f"--model_dir model --propagate quantized --quant {SQ}", "--propagate quantized is for weight-only schemes"),
        ("--model_dir ready --quant W8A16", "become W4A16_GPTQ as they are"),
        ("--model_dir ready --exclude down_proj", "keeps its integers"),
        ("--model_dir model --requantize", "--requantize is for folders that are already quantized"),
        ("--model_dir model --quant W4A16_AWQ", "128"),
        ("--model_dir model --quant W8A16 --symmetric", "--symmetric is for W4A16_GPTQ"),
        ("--model_dir model --quant W8A16 --exclude no_such_linear", "no_such_linear"),
        ("--model_dir model --quant_layer W8A16", "give PATTERN=ALGO"),
        ("--model_dir model --float_budget 3", "--float_budget: nothing is quantized"),
        ("--model_dir ready --float_budget 3", "--float_budget: a folder that is quantized already"),
        (f"--model_dir model --quant {SQ} --float_budget 60", "at most 50 is needed"),
        (f"--model_dir model --quant {SQ} --calib_seq_len 8 --calib missing", "--calib: no such file missing"),
        (f"--model_dir model --quant {SQ} --calib_seq_len 65", "--calib_seq_len 65 is longer"),
    )
]
CONVERT += [
    Start("convert --model_dir model --output_dir model/out", 2, "lies in --model_dir model"),
    Start("convert --model_dir model --output_dir out --stats missing --calib_seq_len 8", 2, "missing is no file"),
    Start("convert --model_dir model --output_dir empty", 2, "--output_dir: empty exists"),
    Start(
        "convert --model_dir model --output_dir out --save_stats no/stats --calib_seq_len 8",
        2,
        "no is not a folder",
    ),
]
VERIFY = [
    Start(f"verify {words}", code, said)
    for words, code, said in (
        ("missing", 2, "missing is not a folder"),
        ("unknown", 2, "SomeForCausalLM"),
        ("algorithm", 2, "NVFP4"),
        ("float32", 2, "float32"),
        ("manifest", 2, "enginesmith.json"),
        ("checkpoint", 1, "rank0.safetensors: missing"),
        ("checkpoint --reference missing", 1, "rank0.safetensors: missing"),
        ("sound --reference missing", 2, "--reference: missing is not a folder"),
        ("sound --reference architecture", 2, "SomethingForCausalLM"),
        ("sound --reference other", 2, "vocab_size is 102, the checkpoint's is 101"),
        ("sound --reference model --device colour", 2, "--device: 'colour' is no device"),
        ("sound --reference model --seq_len 65", 2, "--seq_len 65 is longer"),
        ("sound --reference model --seq_len 64 --text missing", 2, "--text: no such file missing"),
    )
]
COMPARE = [
    Start(f"compare {words}", 2, said)
    for words, said in (
        ("--model_dir missing --quant none", "--model_dir: missing is not a folder"),
        ("--model_dir model --quant W9", "--quant"),
        ("--model_dir model --quant none,none", "none is named twice"),
        ("--model_dir model --quant W8A16:colour=1", "is no setting of an algorithm"),
        ("--model_dir model --quant W4A16_AWQ", "128"),
        ("--model_dir model --quant none --html no/page.html", "--html: no is not a folder"),
    )
]
PLANS = [
    Start("--version", 0, "enginesmith, version"),
    Start("families", 0, "LlamaForCausalLM"),
    Start("plugins planned", 0, "RmsnormQuantization"),
    Start("build --checkpoint_dir unknown --output_dir plan --plan_only --gpu A100", 0, "build it with:"),
    Start("check missing", 2, "missing is not a folder"),
    Start("check checkpoint", 1, "only trtllm-build"),
    Start("check-engine missing", 2, "missing"),
    Start("triton --check missing", 2, "missing"),
    Start("run missing.yaml", 2, "missing.yaml"),
    Start("run recipe.yaml", 2, "missing is not a folder"),
]
STARTS = [*HELP, *USAGE, *CONVERT, *VERIFY, *COMPARE, *PLANS]


def write_folders(root: Path) -> None:
    """A model, what is wrong with some, and checkpoints without tensors; all values are 0."""
    tensors = {name: (shape, "float16") for name, shape in hugging_face_shapes(read_model(TINY)).items()}
    norm = "model.norm.weight"
    packed = {name: (shape, "uint8" if "proj" in name else dtype) for name, (shape, dtype) in tensors.items()}
    lacking = {name: form for name, form in tensors.items() if name != norm}
    write_model(root / "model", tensors)
    write_model(root / "architecture", tensors, architectures=["SomethingForCausalLM"])
    write_model(root / "value", tensors, hidden_act="colour")
    write_model(root / "rope", tensors, rope_scaling={"rope_type": "colour"})
    write_model(root / "lacking", lacking)
    write_model(root / "more", tensors | {"model.more.weight": ([1], "float16")})
    write_model(root / "dtype", tensors | {norm: ([64], "int32")})
    write_model(root / "shape", tensors | {norm: ([63], "float16")})
    write_model(root / "quantized", packed, quantization_config={"quant_method": "bitsandbytes"})
    vocabulary = {name: ([102, 64], "float16") for name in ("model.embed_tokens.weight", "lm_head.weight")}
    write_model(root / "other", tensors | vocabulary, vocab_size=102)
    write_model(root / "whole", {})
    (root / "whole" / "model.safetensors").write_bytes(b"0123456789")
    write_model(root / "pickled", {})
    (root / "pickled" / "model.safetensors").rename(root / "pickled" / "pytorch_model.bin")
    (root / "empty").mkdir()
    config = CONFIG | {name: TINY[name] for name in CONFIG.keys() & TINY.keys()}
    config |= {"architecture": "LlamaForCausalLM", "head_size": 16, "norm_epsilon": 1e-5, "hidden_act": "silu"}
    config |= {"position_embedding_type": "rope_gpt_neox"}
    write_checkpoint(root / "unknown", SQ)
    write_checkpoint(root / "planned", SQ, **config)
    write_checkpoint(root / "algorithm", "NVFP4", **config)
    for name, changes in {"checkpoint": {}, "manifest": {}, "float32": {"dtype": "float32"}}.items():
        write_checkpoint(root / name, SQ, **config | changes)
        (root / name / "rank0.safetensors").unlink()
    sound = Checkpoint(write_checkpoint(root / "sound", SQ, **config))
    save(root / "sound" / "rank0.safetensors", rank_tensors(sound.precision, sound.mapping, 0, sound.engine))
    (root / "manifest" / "enginesmith.json").write_text("[]")
    (root / "ready").symlink_to(DATA / "readymade" / "gptqmodel-w4-symmetric-g64")
    (root / "recipe.yaml").write_text("model_dir: missing\noutput_dir: release\nconvert: {}\n")


def write_model(folder: Path, tensors: dict[str, Form], **changes: Any) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY | changes))
    save(folder / "model.safetensors", tensors)


def save(path: Path, tensors: dict[str, Form]) -> None:
    save_file({name: np.zeros(shape, dtype) for name, (shape, dtype) in tensors.items()}, path)
