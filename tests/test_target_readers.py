"""Folders that other tools made, executed to the logits that their real readers gave; and ours, by a real reader."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from .target_folders import IDS, INDEX, SAME, TARGETS, logits, made

READ = [
    (name, "transformers" if "transformers" in reader else "edge", path)
    for name, folder in INDEX.items()
    for reader, path in folder["logits"].items()
    if "float16 as exported" not in reader
]
# Of logits whose deviation is 2.1: at most tokens sums of float32 in another order, at some what an integer makes that
# falls to the other side of a tie.
CLOSE, OFF = 1e-4, 0.01


@pytest.mark.parametrize(("name", "reader", "path"), READ, ids=[name for name, _, _ in READ])
def test_a_peers_folder_computes_what_its_reader_did(name: str, reader: str, path: str) -> None:
    wanted = load_file(TARGETS / path)["logits"]
    got = logits(TARGETS / name, reader)
    assert_close(got.view(wanted.shape), wanted.float())


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Logits [..., vocabulary] of two that compute the same."""
    by_token = (got - wanted).abs().amax(-1)
    assert float(by_token.median()) < CLOSE
    assert float((got - wanted).norm() / wanted.norm()) < OFF


def test_every_golden_is_read() -> None:
    assert len(READ) == 15


@pytest.mark.parametrize(
    ("quant", "options"),
    [
        ("W8A8", {}),
        ("W8A8_SQ_PER_CHANNEL", {}),
        ("W4A16_AWQ", {}),
        ("W4A16_GPTQ", {}),
        ("W4A16_GPTQ", {"symmetric": True, "group_size": 32}),
        ("W8A16", {}),
        ("W4A16", {}),
        ("FP8", {"kv_cache": "FP8"}),
        ("FP8_DYNAMIC", {}),
        ("W8A8", {"exclude": ("*.1.*down_proj",), "dtype": "bfloat16", "shard_size": 0.001}),
    ],
    ids=lambda value: str(value),
)
def test_transformers_reads_ours(
    quant: str, options: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """compressed-tensors' own quantizer misses nothing, leaves nothing over, and computes what our runtime does."""
    pytest.importorskip("compressed_tensors")
    if not reads(tmp_path, TARGETS / SAME.get(("compressed-tensors", quant, tuple(options.items())), "base")):
        pytest.skip("this version does not read what llm-compressor wrote in this scheme either")
    folder = made("compressed-tensors", quant, tmp_path / "made", **options)
    caplog.set_level(logging.WARNING)
    load = transformers.AutoModelForCausalLM.from_pretrained
    model, told = load(folder, dtype=torch.float32, output_loading_info=True)
    assert {key: sorted(told[key]) for key in ("missing_keys", "unexpected_keys") if told[key]} == {}
    with torch.inference_mode():
        wanted = model(IDS["token_ids"].long()).logits.float()
    got = logits(folder, "transformers")
    assert_close(got, wanted)
    quantized = [name for name, part in model.named_modules() if hasattr(part, "quantization_scheme")]
    assert len(quantized) == (13 if "exclude" in options else 14)


def reads(tmp_path: Path, peer: Path) -> bool:
    """Whether transformers reads all of a peer's folder."""
    folder = shutil.copytree(TARGETS / "base", tmp_path / "peer")
    shutil.copytree(peer, folder, dirs_exist_ok=True)
    try:
        _, told = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    except RuntimeError:
        return False
    return not told["unexpected_keys"]


def test_what_transformers_would_take_for_another_scheme_is_said(tmp_path: Path) -> None:
    """lm_head is a Linear too: without its name in the list its weights would be wanted packed."""
    folder = made("compressed-tensors", "W8A8", tmp_path / "made")
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert said["ignore"] == ["lm_head"]
    assert said["quantization_status"] == "compressed"
