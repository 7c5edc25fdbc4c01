"""Qwen2 with a class for every sequence in place of the next token: rewards, rerankers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...files.reader import Reader
from .qwen2 import QWEN2
from .qwen2 import config as qwen2_config
from .qwen2 import read as read_qwen2


def read(said: Reader) -> dict[str, Any]:
    labels = said.section("id2label").values
    return read_qwen2(said) | {"num_labels": said.integer("num_labels", len(labels) or 2), "tied": False}


def stated(said: Reader) -> dict[str, Any]:
    return {"num_labels": said.integer("num_labels")}


def config(model: Any) -> dict[str, Any]:
    return qwen2_config(model) | {"num_labels": model.num_labels}


QWEN2_CLASSIFICATION = replace(
    QWEN2,
    title="Qwen2, sequence classification",
    architectures=("Qwen2ForSequenceClassification",),
    spellings=(),
    head="score.weight",
    classifies=True,
    read=read,
    config=config,
    stated=stated,
)
