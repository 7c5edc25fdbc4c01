"""GPT-2: keys that it does not have, learned positions, transposed matrices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.models.families.gpt2 import GPT2
from enginesmith.convert.prove.verify import measure

from .command import run
from .family_models import MOST_KL, WIDE, converted, random_model, say


def gpt2(folder: Path, **config: Any) -> Path:
    """A random GPT-2 whose config.json says something besides."""
    random_model(folder / "hf", GPT2.architectures[0], WIDE)
    save_file({"input_ids": torch.arange(96).view(4, 24)}, folder / "ids.safetensors")
    say(folder / "hf", **config)
    return folder / "hf"


def test_keys_that_gpt2_does_not_have_change_nothing(tmp_path: Path) -> None:
    plain = read_model(json.loads((gpt2(tmp_path / "a") / "config.json").read_text()))
    model = gpt2(tmp_path / "b", num_key_value_heads=2, head_dim=8)
    assert read_model(json.loads((model / "config.json").read_text())) == plain
    checkpoint = converted(model, tmp_path / "ck", quant="W8A16")
    manifest = json.loads((tmp_path / "ck/enginesmith.json").read_text())
    assert "max_position_embeddings" not in str(manifest["source_notes"])
    assert measure(checkpoint, model, str(model.parent / "ids.safetensors"), 4, 24).kl < MOST_KL["W8A16"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_key_value_heads": 2}, "num_key_value_heads must be 4: GPT2LMHeadModel shares no keys"),
        ({"rotary_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rotary_scaling must be null: GPT2LMHeadModel has"),
        ({"rotary_scaling": {"rope_type": "linear", "factor": 2.0}}, "rotary_scaling must be null"),
    ],
)
def test_what_a_checkpoint_of_gpt2_may_not_say(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    converted(gpt2(tmp_path), tmp_path / "ck", quant="W8A16")
    say(tmp_path / "ck", **config)
    (tmp_path / "ck/enginesmith.json").unlink()
    assert words in run("verify", tmp_path / "ck", expect=2).stderr
    plan = ["build", "--checkpoint_dir", tmp_path / "ck", "--output_dir", tmp_path / "plan", "--plan_only"]
    assert words in run(*plan, "--gpu", "A100", expect=2).stderr


def test_no_engine_goes_beyond_learned_positions(tmp_path: Path) -> None:
    converted(gpt2(tmp_path), tmp_path / "ck", quant="W8A16")
    words = ["build", "--checkpoint_dir", tmp_path / "ck", "--output_dir", tmp_path / "plan", "--plan_only"]
    refused = run(*words, "--gpu", "A100", "--max_seq_len", 65, expect=2)
    assert "--max_seq_len 65 is beyond the 64 positions that the model has learned; give at most 64" in refused.stderr
    run(*words, "--gpu", "A100", "--max_seq_len", 64)


def test_a_table_of_positions_that_float16_cannot_hold_is_named(tmp_path: Path) -> None:
    model = gpt2(tmp_path)
    weights = load_file(model / "model.safetensors")
    save_file(
        weights | {"transformer.wpe.weight": weights["transformer.wpe.weight"] * 5e6}, model / "model.safetensors"
    )
    with pytest.raises(InputError, match=r"transformer\.wpe\.weight does not fit float16"):
        converted(model, tmp_path / "ck", quant="W8A16")


def test_gpt2_that_is_quantized_already_is_not_read(tmp_path: Path) -> None:
    """Its tools store what GPT-2 has transposed as it is in other families."""
    model = gpt2(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 64})
    weights = load_file(model / "model.safetensors")
    weights["transformer.h.0.attn.c_proj.qweight"] = torch.zeros(32, 256, dtype=torch.int32)
    save_file(weights, model / "model.safetensors")
    for requantize in (True, False):
        with pytest.raises(InputError, match="quantized by gptq is not read; give the unquantized model"):
            converted(model, tmp_path / "ck", quant="W4A16_GPTQ", requantize=requantize)
