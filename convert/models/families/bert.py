"""BERT and RoBERTa: encoders with LayerNorms behind the residual, and a head for what is predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from ..family import Family
from ..pieces import BEHIND, COLUMNS, HEADS, LAYER, LEARNED, ROWS, Group, Linear, Norm
from ..task import Projection, Task

QUERY, KEY, VALUE = (f"attention.self.{part}" for part in ("query", "key", "value"))
DENSE, FC, PROJ = "attention.output.dense", "intermediate.dense", "output.dense"
# What makes a decoder of it, and what it must be.
FIXED = dict.fromkeys(("is_decoder", "add_cross_attention"), False)
ENGINE_EPSILON = 1e-5
TITLES = ("", ", question answering", ", sequence classification")
KINDS = ("Model", "ForQuestionAnswering", "ForSequenceClassification")
SPANS = Task((Projection("qa_outputs", "qa_outputs", "num_labels"),))
CLASSES = Task(
    (
        Projection("pooler.dense", "bert.pooler.dense", "hidden_size"),
        Projection("classifier", "classifier", "num_labels"),
    )
)
ROBERTA_CLASSES = Task(
    (
        Projection("classifier.dense", "classifier.dense", "hidden_size"),
        Projection("classifier.out_proj", "classifier.out_proj", "num_labels", "float32"),
    )
)


def reading(spans: bool, padding: int) -> Callable[[Reader], dict[str, Any]]:
    """What a config.json says.

    Args:
        spans: it predicts where an answer is.
        padding: the padding token where that is not said.
    """

    def read(said: Reader) -> dict[str, Any]:
        for key, wanted in FIXED.items():
            said.require(key, wanted, "engines build encoders of it")
        said.choice("position_embedding_type", ("absolute",), "absolute")
        labels = said.section("id2label").values
        count = said.integer("num_labels", len(labels) or 2)
        if labels and count != len(labels):
            raise said.wrong("num_labels", f"{len(labels)}, as many as id2label has")
        if spans and count != 2:
            raise said.wrong("num_labels", "2: the scores of an answer's first and last token")
        return {
            "attn_bias": True,
            "mlp_bias": True,
            "tied": False,
            "type_vocab_size": said.integer("type_vocab_size", 2),
            "pad_token_id": said.integer("pad_token_id", padding, least=0),
            "num_labels": count,
        }

    return read


def stated(said: Reader) -> dict[str, Any]:
    """An engine takes its own epsilon, whatever a checkpoint says."""
    sizes = {name: said.integer(name) for name in ("type_vocab_size", "num_labels")}
    return {"norm_epsilon": ENGINE_EPSILON, "pad_token_id": said.integer("pad_token_id", least=0), **sizes}


def config(model: Any) -> dict[str, Any]:
    own = {name: getattr(model, name) for name in ("type_vocab_size", "pad_token_id", "num_labels")}
    return {"is_roberta": model.family.positions_behind_padding, **own}


BERT = Family(
    title="BERT",
    architectures=("BertModel",),
    embedding="embeddings.word_embeddings.weight",
    position_embedding="embeddings.position_embeddings.weight",
    type_embedding="embeddings.token_type_embeddings.weight",
    embedding_norm=Norm("embedding_ln", "embeddings.LayerNorm", LAYER),
    final_norm=None,
    head=None,
    task=Task(),
    layer="encoder.layer.{i}.",
    engine_layer="layers.{i}.",
    engine_embedding="embedding.",
    norms=(
        Norm("input_layernorm", "attention.output.LayerNorm", LAYER),
        Norm("post_layernorm", "output.LayerNorm", LAYER),
    ),
    linears=(
        Linear("attention.qkv", (QUERY, KEY, VALUE), HEADS, ("query_size",) * 3, "hidden_size", "attn_bias"),
        Linear("attention.dense", (DENSE,), COLUMNS, ("hidden_size",), "query_size", "attn_bias"),
        Linear("mlp.fc", (FC,), ROWS, ("intermediate_size",), "hidden_size", "mlp_bias"),
        Linear("mlp.proj", (PROJ,), COLUMNS, ("hidden_size",), "intermediate_size", "mlp_bias"),
    ),
    groups=(
        Group("attention.qkv", ("attention.qkv",)),
        Group("attention.dense", ("attention.dense",), feeder=VALUE),
        Group("mlp.fc", ("mlp.fc",)),
        Group("mlp.proj", ("mlp.proj",)),
    ),
    arrangement=BEHIND,
    ignored=("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"),
    positions=LEARNED,
    pipelined=False,
    keys={"norm_epsilon": "layer_norm_eps"},
    implied=("num_key_value_heads", "head_size"),
    defaults={"max_position_embeddings": 512},
    activations={"gelu": "gelu", "gelu_new": "gelu_new", "relu": "relu"},
    norm_epsilon=1e-12,
    four_times=True,
    biased=True,
    read=reading(False, 0),
    config=config,
    stated=stated,
)


def of_kind(family: Family, prefix: str, kind: int, task: Task, padding: int) -> Family:
    """An encoder with a head, whose own tensors' names have a prefix; kind: place in KINDS."""
    norm = family.embedding_norm
    assert norm is not None
    return replace(
        family,
        title=family.title + TITLES[kind],
        architectures=(family.architectures[0].replace(KINDS[0], KINDS[kind]),),
        spellings=(),
        embedding=prefix + family.embedding,
        position_embedding=f"{prefix}{family.position_embedding}",
        type_embedding=f"{prefix}{family.type_embedding}",
        embedding_norm=replace(norm, tensor=prefix + norm.tensor),
        layer=prefix + family.layer,
        engine_layer=f"bert.{family.engine_layer}",
        engine_embedding=f"bert.{family.engine_embedding}",
        ignored=family.ignored[:1] if task is CLASSES else family.ignored,
        task=task,
        read=reading(task is SPANS, padding),
    )


ROBERTA = replace(
    BERT,
    title="RoBERTa",
    architectures=("RobertaModel",),
    positions_behind_padding=True,
    read=reading(False, 1),
)
ENCODERS = (
    BERT,
    of_kind(BERT, "bert.", 1, SPANS, 0),
    of_kind(BERT, "bert.", 2, CLASSES, 0),
    ROBERTA,
    of_kind(ROBERTA, "roberta.", 1, SPANS, 1),
    of_kind(ROBERTA, "roberta.", 2, ROBERTA_CLASSES, 1),
)
