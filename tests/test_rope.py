"""What a configuration says about rotary embeddings, held against transformers' own reading of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from enginesmith.convert.errors import InputError
from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.models.rope import rotary_pairs
from enginesmith.convert.models.rotary import rotary_frequencies
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.sources.folder import Source

from .conftest import TINY, write_model

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
READ = [
    {},
    {"rope_theta": 5e5},
    {"rope_scaling": {"type": "default"}},
    {"rope_scaling": {"rope_type": "default", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "default", "type": "linear", "factor": 2.0}},
    {"rope_scaling": {"type": "linear", "factor": 2}},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": "64"}},
    {"rope_scaling": LLAMA3},
    {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32}, "original_max_position_embeddings": 16},
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "finetuned": True}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False, "beta_fast": 20}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5, "x": "y"}},
    {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e3}},
    {"rope_parameters": {"rope_theta": 1e3}, "rope_theta": 1e6},
    {"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rope_scaling": {"type": "linear", "factor": 2.0}},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("changes", READ, ids=range(len(READ)))
def test_frequencies_are_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", "5.0")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = {key: value for key, value in TINY.items() if key != "rope_theta"} | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = LlamaRotaryEmbedding(config=transformers.AutoConfig.from_pretrained(tmp_path))
    ours, scaling = rotary_frequencies(read_model(config))
    assert torch.equal(ours, theirs.inv_freq.float())
    assert scaling == theirs.attention_scaling


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"rope_theta": 1.0, "rope_scaling": {"type": "yarn", "factor": 2.0}},
            "needs a rope_theta above 1, not 1",
        ),
        ({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic needs a head size above 2"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": "maybe"}}, "truncate must be true or false"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": "64"}},
            "original_max_position_embeddings must be an integer",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": math.nan}}, "beta_fast must be a positive"),
        ({"rope_scaling": {"type": "linear", "factor": math.inf}}, "factor must be a positive number"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "needs a factor of at least 1, not 0.5"),
        ({"rope_scaling": {"type": ["linear"], "factor": 2.0}}, "type must be a text"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor 4.0 must be less than"),
        ({"rope_scaling": {"factor": 2.0}}, "has 'factor' but no rope_type; state one"),
        ({"rope_scaling": 0}, "rope_scaling must be an object"),
        ({"rope_scaling": ""}, "rope_scaling must be an object"),
        ({"rope_parameters": False}, "rope_parameters must be an object"),
        ({"rope_parameters": {"full_attention": {}}}, "no rope_type; state one"),
        ({"rope_scaling": {"a" * 100_000: 1}}, "no rope_type; state one"),
        ({"rope_theta": 0}, "rope_theta must be a positive number"),
        (
            {"max_position_embeddings": 10**8, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "max_position_embeddings 100000000: with rope type dynamic a checkpoint holds a table",
        ),
    ],
)
def test_what_may_not_be_said(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refused:
        read_model(TINY | changes)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 400


def test_what_nothing_reads_goes_no_further(tmp_path: Path, converted: Callable[..., Checkpoint]) -> None:
    """NaN in a key that no type reads is refused where the file is read, and any value of it is left out."""
    scaling = {"type": "linear", "factor": 2.0, "x": [1, 2]}
    folder = write_model(tmp_path / "hf", rope_scaling=scaling, num_hidden_layers=1)
    assert converted(folder).config["rotary_scaling"] == {"rope_type": "linear", "factor": 2.0}
    config = (folder / "config.json").read_text().replace("[1, 2]", "NaN")
    (folder / "config.json").write_text(config)
    with pytest.raises(InputError, match=r"config\.json: not readable as JSON \(NaN is no number of JSON\)"):
        Source(folder)


def test_the_table_is_made_in_pieces(tmp_path: Path, converted: Callable[..., Checkpoint]) -> None:
    positions, scaling = 200_000, {"type": "dynamic", "factor": 2.0}
    pieces = list(rotary_pairs(torch.tensor([1.0, 0.01]), positions))
    assert max(map(len, pieces)) < positions / 2
    angles = torch.outer(torch.arange(positions).float(), torch.tensor([1.0, 0.01]))
    assert torch.equal(torch.cat(pieces), torch.stack((angles.cos(), angles.sin()), -1))
    folder = write_model(tmp_path / "hf", rope_scaling=scaling, num_hidden_layers=1, max_position_embeddings=positions)
    checkpoint = converted(folder)
    with safe_open(checkpoint.rank_file(0), framework="pt") as file:
        table = file.get_tensor("embed_positions_for_gpt_attention").view(positions, -1, 2)
        frequencies = file.get_tensor("rotary_inv_freq")
    angles = torch.outer(torch.arange(positions).float(), frequencies)
    assert torch.equal(table, torch.stack((angles.cos(), angles.sin()), -1))
