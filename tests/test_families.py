"""Every family end to end: each algorithm that its engine computes, on one rank and more, tied and not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.models.families import FAMILIES
from enginesmith.convert.prove.verify import measure, structure_problems
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.targets.trtllm.formats import SCHEMES
from enginesmith.convert.targets.trtllm.honoured import left_out

from .command import run
from .conftest import assert_same_layers
from .family_models import MODELS, MOST_KL, WIDE, converted, random_model, write_family

FAMILY = {family.title: family for family in FAMILIES}


# Llama under other names, and what is built of the same pieces as another.
ALIKE = ("InternLM", "InternLM2, InternLM2.5", "EXAONE 3, 3.5", "Qwen", "Baichuan 1 7B", "Baichuan 1 13B")


SOME = (None, "W4A16_AWQ", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "W8A8_SQ_PER_TENSOR_PLUGIN")


# What other files try with every algorithm.
ELSEWHERE = ("Llama, Yi, DeepSeek-LLM, SmolLM", "Mistral, Mistral-Nemo")
CASES = [
    (title, algo)
    for title in MODELS
    if title not in ELSEWHERE
    for algo in (SOME if title in ALIKE else [None, *SCHEMES])
]


# Distance of an encoder's hidden states from the float32 source's, whose GELU is exact and whose epsilon is smaller.
MOST_DISTANCE = {None: 0.002, "W8A16": 0.01, "W8A16_GPTQ": 0.01}


# Distance of unquantized hidden states in float16, whose steps are 0.001 apart; and where two scores are nearly equal,
# so that a token may be sent to another expert.
MOST_ROUNDED, MOST_SENT_ELSEWHERE = 0.002, 0.03


def test_every_family_has_a_model() -> None:
    assert MODELS.keys() == FAMILY.keys()


@pytest.mark.parametrize(("title", "algo"), CASES)
def test_what_is_written_computes_what_the_source_does(
    title: str, algo: str | None, models: Callable[[str], Path], tmp_path: Path
) -> None:
    model, family = models(title), FAMILY[title]
    if algo in left_out(family):
        with pytest.raises(InputError, match=f"{algo}: not for"):
            converted(model, tmp_path / "ck", quant=algo)
        assert not (tmp_path / "ck").exists()
        return
    whole = converted(model, tmp_path / "ck", quant=algo)
    many = converted(model, tmp_path / "many", quant=algo, tp_size=2)
    for checkpoint in (whole, many):
        assert structure_problems(checkpoint) == []
    assert_same_layers(whole, many)
    accuracy = measure(whole, model, str(model.parent / "ids.safetensors"), 8, 24)
    assert accuracy.beyond is None
    if algo is None:
        assert max(accuracy.layer_errors) < (MOST_SENT_ELSEWHERE if family.experts or family.mixture else MOST_ROUNDED)
    if family.task is not None:
        assert accuracy.distance < MOST_DISTANCE.get(algo, 0.15)
        assert accuracy.cosine > 1 - MOST_DISTANCE.get(algo, 0.15) ** 2
    if family.task is None or family.task.projections:
        assert accuracy.kl < MOST_KL.get(algo, 0.1)


@pytest.mark.parametrize("title", [family.title for family in FAMILIES])
def test_stages(title: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    """Layers on two pipeline stages are those of one; where an engine has no stages, they are refused."""
    model = models(title)
    if not FAMILY[title].pipelined or Source(model).model.shares_embedding:
        with pytest.raises(InputError, match=r"--pp_size 2: engines of \w+ have one stage; use --tp_size"):
            converted(model, tmp_path / "staged", quant=None, pp_size=2)
        return
    staged = converted(model, tmp_path / "staged", quant="W8A16", tp_size=2, pp_size=2)
    assert structure_problems(staged) == []
    assert_same_layers(converted(model, tmp_path / "ck", quant="W8A16"), staged)


def test_yarn_scales_the_norm_of_queries_where_there_is_one(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 8.0, "rope_theta": 1e3, "original_max_position_embeddings": 8}
    random_model(tmp_path / "hf", "Qwen3ForCausalLM", WIDE | {"rope_parameters": yarn, "head_dim": 32})
    save_file({"input_ids": torch.arange(96).view(4, 24)}, tmp_path / "ids.safetensors")
    checkpoint = converted(tmp_path / "hf", tmp_path / "ck", quant=None)
    accuracy = measure(checkpoint, tmp_path / "hf", str(tmp_path / "ids.safetensors"), 4, 24)
    assert accuracy.kl < MOST_KL[None]


TIED = [
    name
    for name, (kind, _) in MODELS.items()
    if hasattr(transformers, kind) and name != "DBRX" and FAMILY[name].head is not None
]


@pytest.mark.parametrize("title", TIED)
def test_a_tied_embedding_is_read_back(title: str, tmp_path: Path) -> None:
    write_family(tmp_path / "hf", title, tie_word_embeddings=True)
    checkpoint = converted(tmp_path / "hf", tmp_path / "ck", quant="W8A16")
    assert structure_problems(checkpoint) == []
    assert measure(checkpoint, tmp_path / "hf", str(tmp_path / "ids.safetensors"), 4, 24).kl < MOST_KL["W8A16"]
    run("plugins", tmp_path / "ck")
    words = ["build", "--checkpoint_dir", tmp_path / "ck", "--output_dir", tmp_path / "plan", "--plan_only"]
    run(*words, "--gpu", "A100", "--max_seq_len", 64)


def test_families_are_listed() -> None:
    said = run("families").stdout
    for family in FAMILIES:
        assert f"{family.title} ({', '.join(family.architectures)}): TensorRT-LLM {family.since} to 1.2.1" in said
    told = json.loads(run("families", "--json").stdout)
    assert {entry["title"]: entry["refused"] for entry in told} == {f.title: left_out(f) for f in FAMILIES}


def test_the_readme_has_the_table() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert run("families", "--markdown").stdout in readme


def test_statistics_of_sandwiched_layers_are_kept(tmp_path: Path) -> None:
    """Norms behind attention and MLP are looked at too."""
    folder = write_family(tmp_path / "hf", "Gemma 2")
    first = converted(folder, tmp_path / "ck", quant="W4A16_AWQ", save_stats=str(tmp_path / "stats"))
    again = converted(folder, tmp_path / "again", quant="W4A16_AWQ", stats=str(tmp_path / "stats"))
    assert_same_layers(first, again)
