"""The bench: figures of a checkpoint and of its source, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import enginesmith as es
from enginesmith.convert.generate.bench import Checkpoint
from enginesmith.convert.prove.proven import ProvenCheckpoint

from .command import run

Tiny = Callable[..., Path]
Converted = Callable[..., ProvenCheckpoint]


def test_both_are_measured(tiny: Tiny, converted: Converted) -> None:
    model = tiny(num_hidden_layers=2)
    folder = converted(model, quant="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN").folder
    words = ("--prompt_tokens", 8, "--new_tokens", 3, "--batch", 2, "--repeats", 1, "--device", "cpu")
    ours, theirs = json.loads(run("bench", folder, "--reference", model, *words, "--json").stdout)
    assert (ours["name"], theirs["name"]) == ("checkpoint", "transformers, float16")
    for one in (ours, theirs):
        assert min(one["prefill"], one["decode"], one["load"]) > 0
        assert one["memory"] is None
    assert "Loading" not in run("bench", folder, "--reference", model, *words).stderr
    table = run("bench", folder, *words).stdout.splitlines()
    assert len(table) == 2
    assert table[1].startswith("checkpoint")


def test_more_tokens_than_positions_are_refused(tiny: Tiny, converted: Converted) -> None:
    model = tiny(num_hidden_layers=2)
    folder = converted(model, quant="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN").folder
    with pytest.raises(es.InputError, match="more than the 64 positions of the model; give less"):
        es.bench(folder, es.BenchOptions(prompt_tokens=64, new_tokens=1))


def test_another_models_reference_is_refused(tiny: Tiny, converted: Converted) -> None:
    folder = converted(tiny(num_hidden_layers=2), quant="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN").folder
    with pytest.raises(es.InputError, match="num_hidden_layers is 3, the checkpoint's is 2"):
        es.bench(folder, es.BenchOptions(prompt_tokens=4, new_tokens=1, repeats=1), tiny(num_hidden_layers=3))


def test_a_reference_that_transformers_cannot_execute_is_refused(tiny: Tiny, converted: Converted) -> None:
    """Before anything is timed, and without asking whether its code may be run."""
    model = tiny(num_hidden_layers=2)
    folder = converted(model, quant="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN").folder
    words = ("--prompt_tokens", 4, "--new_tokens", 1, "--repeats", 1, "--device", "cpu")
    assert "--reference" in run("bench", folder, "--reference", folder, *words, expect=2).stderr
    config = json.loads((model / "config.json").read_text())
    del config["model_type"]
    (model / "config.json").write_text(json.dumps(config))
    said = run("bench", folder, "--reference", model, *words, expect=2).stderr
    assert said.startswith("enginesmith: --reference: transformers cannot execute")
    assert said.endswith("; leave it out\n")
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "own.py").write_text("raise SystemExit('run')")
    assert "transformers cannot execute" in run("bench", folder, "--reference", model, *words, expect=2).stderr


def test_too_little_memory_is_no_internal_error(
    tiny: Tiny, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = converted(tiny(num_hidden_layers=2), quant="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN").folder

    def prefill(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Checkpoint, "prefill", prefill)
    with pytest.raises(es.InputError, match="checkpoint: the GPU's memory is too small; give less --batch"):
        es.bench(folder, es.BenchOptions(prompt_tokens=4, new_tokens=1, repeats=1, device="cpu"))
