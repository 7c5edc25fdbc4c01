"""Encoders: what is measured of them, the table of token types, epsilons, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.models.dimensions import read_model
from enginesmith.convert.prove.encoders import EncoderAccuracy, compare_scores
from enginesmith.convert.prove.proven import ProvenCheckpoint as Checkpoint
from enginesmith.convert.prove.verify import accuracy_failures, figures, measure, structure_problems
from enginesmith.convert.sources.folder import Source

from .command import run
from .family_models import write_family

SIZES = {
    "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip


def made(folder: Path, title: str = "BERT", quant: str | None = None, **options: Any) -> Checkpoint:
    """A checkpoint of a random encoder, beside its source."""
    if not (folder / "hf").exists():
        write_family(folder / "hf", title)
    calib = {"calib": str(folder / "ids.safetensors"), "calib_size": 8, "calib_seq_len": 24}
    settings = {"dtype": "float16", **calib, **options}
    convert(ConvertOptions(str(folder / "hf"), str(folder / "ck"), quant=quant, **settings))
    return Checkpoint(folder / "ck")


def measured(folder: Path) -> EncoderAccuracy:
    accuracy = measure(Checkpoint(folder / "ck"), folder / "hf", str(folder / "ids.safetensors"), 8, 24)
    assert isinstance(accuracy, EncoderAccuracy)
    return accuracy


@pytest.mark.parametrize(("title", "predicts"), [("BERT", False), ("BERT, question answering", True)])
def test_verify_tells_distances_and_no_perplexity(title: str, predicts: bool, tmp_path: Path) -> None:
    made(tmp_path, title)
    words = ["verify", tmp_path / "ck", "--reference", tmp_path / "hf", "--text", tmp_path / "ids.safetensors"]
    words += ["--chunks", "8", "--seq_len", "24"]
    said = run(*words)
    assert "distance of hidden states" in said.stdout
    assert "mean cosine" in said.stdout
    assert ("mean KL" in said.stdout) == predicts
    assert not any(word in said.stdout for word in ("perplexity", "KV cache", "decoding"))
    told = json.loads(run(*words, "--json", "--max_distance", "1").stdout)
    assert told["ok"]
    assert ("mean_kl" in told["accuracy"]) == predicts
    assert told["accuracy"]["distance_percent"] == 100 * told["accuracy"]["layer_errors"][-1]
    failed = run(*words, "--max_distance", "0.001", expect=1)
    assert "more than --max_distance 0.001" in failed.stderr + failed.stdout
    refused = run(*words, "--max_ppl_increase", "1", expect=2).stderr
    assert "predicts no tokens and has no perplexity; give --max_distance" in refused


def test_a_distance_that_is_no_number_fails() -> None:
    lost = EncoderAccuracy(1, float("nan"), float("nan"), layer_errors=[float("nan")])
    assert accuracy_failures(lost, None) == ["the distance from the source is no number"]
    assert figures(lost)["cosine"] is None
    assert accuracy_failures(EncoderAccuracy(1, 0.02, 1.0, layer_errors=[0.02]), None, 3.0) == []


def test_scores_are_compared_as_distributions() -> None:
    scores = torch.randn(2, 7, 2, generator=torch.Generator().manual_seed(0))
    shifted = scores + torch.tensor([3.0, -1.0])  # of every position: the same distribution over them
    assert compare_scores(False, scores, shifted)[0] < 1e-12
    other = scores.flip(1)
    p, q = scores.double().softmax(1), other.double().softmax(1)
    expected = (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(compare_scores(False, scores, other)[0], expected)
    classes = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    assert compare_scores(True, classes, classes.flip(1))[1] == 0
    assert compare_scores(True, classes, classes).tolist() == [0, 1]


@pytest.mark.parametrize("algo", ["W8A16", "W4A16"])
def test_token_types_are_rounded_where_weights_alone_are(algo: str, tmp_path: Path) -> None:
    checkpoint = made(tmp_path, quant=algo, tp_size=2)
    for rank in range(2):
        stored = load_file(tmp_path / f"ck/rank{rank}.safetensors")
        integers, scales = (stored[f"embedding.token_embedding.{name}"] for name in ("weight", "per_token_scale"))
        assert integers.dtype == torch.int8
        assert integers.abs().amax(1).eq(127).all()
    types = Source(tmp_path / "hf").embedding().types
    read = checkpoint.embedding().types
    assert types is not None
    assert read is not None
    assert ((read.float() - types).abs() <= 0.6 * scales.float()[:, None]).all()
    stored["embedding.token_embedding.per_token_scale"] = -scales
    save_file(stored, tmp_path / "ck/rank1.safetensors")
    (tmp_path / "ck/enginesmith.json").unlink()
    assert any("is not positive" in problem for problem in structure_problems(Checkpoint(tmp_path / "ck")))


def test_a_table_of_zeros_stays_one(tmp_path: Path) -> None:
    write_family(tmp_path / "hf", "RoBERTa")
    name = "embeddings.token_type_embeddings.weight"
    weights = load_file(tmp_path / "hf/model.safetensors")
    save_file(weights | {name: torch.zeros_like(weights[name])}, tmp_path / "hf/model.safetensors")
    types = made(tmp_path, "RoBERTa", "W8A16").embedding().types
    assert types is not None
    assert not types.any()
    assert structure_problems(Checkpoint(tmp_path / "ck")) == []


def test_some_layers_may_stay_in_float(tmp_path: Path) -> None:
    checkpoint = made(tmp_path, quant="W8A16", exclude=["layers.0.mlp.*"])
    said = json.loads((tmp_path / "ck/config.json").read_text())["quantization"]["exclude_modules"]
    assert [name for name in said if "layers" in name] == ["layers.0.mlp.fc*", "layers.0.mlp.proj*"]
    assert structure_problems(checkpoint) == []
    assert measured(tmp_path).distance < 0.01


def test_the_engine_has_an_epsilon_of_its_own(tmp_path: Path) -> None:
    """Where hidden states are small, 1e-5 is felt: the checkpoint says 1e-12 and its engine computes with the other."""
    checkpoint = made(tmp_path)
    assert json.loads((tmp_path / "ck/config.json").read_text())["norm_epsilon"] == 1e-12
    assert (Source(tmp_path / "hf").model.norm_epsilon, checkpoint.model.norm_epsilon) == (1e-12, 1e-5)
    near = measured(tmp_path).distance
    weights = load_file(tmp_path / "hf/model.safetensors")
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    small = {name: x * 0.1 for name, x in weights.items() if any(table in name for table in tables)}
    save_file(weights | small, tmp_path / "hf/model.safetensors")
    (tmp_path / "ck").rename(tmp_path / "before")
    made(tmp_path)
    assert measured(tmp_path).distance > 2 * near


def test_the_hidden_state_before_a_norm_must_fit_float16(tmp_path: Path) -> None:
    write_family(tmp_path / "hf", "BERT")
    weights = load_file(tmp_path / "hf/model.safetensors")
    for name in [name for name in weights if name == "encoder.layer.1.output.dense.weight"]:
        weights[name] = weights[name] * 2e5
    save_file(weights, tmp_path / "hf/model.safetensors")
    with pytest.raises(InputError, match=r"layer 1: the (hidden state before post_layernorm|output).*beyond float16"):
        made(tmp_path, quant="W8A8_SQ_PER_CHANNEL")
    made(tmp_path)
    assert "beyond float16" in accuracy_failures(measured(tmp_path), None)[0]


def test_positions_of_roberta_begin_behind_the_padding_token(tmp_path: Path) -> None:
    write_family(tmp_path / "hf", "RoBERTa", pad_token_id=3)
    model = Source(tmp_path / "hf").model
    assert (model.first_position, model.longest) == (4, 60)
    ids = torch.zeros(1, 61, dtype=torch.int64)
    save_file({"input_ids": ids}, tmp_path / "long.safetensors")
    made(tmp_path, "RoBERTa")
    with pytest.raises(InputError, match="--seq_len 61 is longer than the model's 60 positions"):
        measure(Checkpoint(tmp_path / "ck"), tmp_path / "hf", str(tmp_path / "long.safetensors"), 1, 61)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv_cache": "INT8"}, "--kv_cache INT8: BertModel is an encoder, whose engine has no KV cache"),
        ({"quant": "W8A8_SQ_PER_CHANNEL", "rotate": True}, "--rotate: norms of BertModel do not commute"),
    ],
)
def test_options_of_decoders_are_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        made(tmp_path, **options)
    assert not (tmp_path / "ck").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"is_decoder": True}, "is_decoder must be false"),
        ({"add_cross_attention": True}, "add_cross_attention must be false"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"intermediate_size": 16}, "intermediate_size 16 must be 32"),
        ({"hidden_act": "silu"}, "hidden_act 'silu' is not supported"),
        ({"num_labels": 3}, "num_labels must be 2: the scores of an answer's first and last token, not 3"),
        ({"num_labels": 3, "id2label": {"0": "a", "1": "b"}}, "num_labels must be 2, as many as id2label"),
    ],
)
def test_encoders_that_no_engine_computes_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_model({"architectures": ["BertForQuestionAnswering"]} | SIZES | config)


def test_commands_for_decoders_say_so(tmp_path: Path) -> None:
    made(tmp_path)
    text = ["--calib", tmp_path / "ids.safetensors", "--text", tmp_path / "ids.safetensors", "--seq_len", "24"]
    refused = run("compare", "--model_dir", tmp_path / "hf", "--quant", "W8A16", *text, expect=2).stderr
    assert "BertModel predicts no tokens, and algorithms are compared by the next one" in refused
    plan = ["build", "--checkpoint_dir", tmp_path / "ck", "--output_dir", tmp_path / "plan", "--plan_only"]
    assert "BertModel is an encoder: plans are for" in run(*plan, "--gpu", "A100", expect=2).stderr
    assert "BertAttention" in run("plugins", tmp_path / "ck").stdout
