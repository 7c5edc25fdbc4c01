"""A small language model with a tokenizer, and task files of every kind beside their records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from enginesmith.convert.evaluate import figures
from enginesmith.convert.evaluate.options import EvaluateOptions

from .conftest import write_model
from .triton_folders import write_tokenizer

WORDS = ("stop", "the hello", "brown fox", "hello the", "two, three", "fox")
RECORDS: dict[str, list[dict[str, Any]]] = {
    "choices": [
        {"question": f"the {word} " * (n + 1), "choices": [*WORDS[n:], *WORDS[:n]][:4], "answer": n % 4}
        for n, word in enumerate(WORDS)
    ],
    "answers": [{"question": f"hello {word}", "answer": "the"} for word in WORDS],
    "texts": [{"text": "the quick brown fox stops here, " * n + "hello."} for n in (1, 2, 4)],
}
EACH = {"aggregation": "mean", "higher_is_better": True}
TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "question: {{question}}\nanswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", **EACH}, {"metric": "acc_norm", **EACH}],
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "question: {{question}}\nanswer:",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["e", "th"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match", **EACH}],
    },
    "texts": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"},
}


def write_task(folder: Path, name: str, kind: str, **changes: Any) -> Path:
    """A task file, and its records beside it; a change to None leaves a key out."""
    folder.mkdir(exist_ok=True)
    (folder / f"{kind}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS[kind]))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{kind}.jsonl"}},
        "test_split": "test",
        **TASKS[kind],
        **changes,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return file


def write_tasks(folder: Path) -> Path:
    """One task of every kind."""
    for kind in TASKS:
        write_task(folder, kind, kind)
    return folder


def write_speaker(folder: Path, kind: str = "byte_level", chat: bool = False, **changes: Any) -> Path:
    """A random Llama whose tokenizer adds BOS (``sentencepiece``) or nothing (``byte_level``)."""
    write_model(folder, **{"vocab_size": 600, "torch_dtype": "float32", **changes})
    return write_tokenizer(folder, kind, chat=chat)


def of_transformers(folder: Path, how: EvaluateOptions, **more: Any) -> dict[str, Any]:
    """What the harness's own Hugging Face model gives."""
    from lm_eval.models.huggingface import HFLM

    from enginesmith.convert.evaluate import harness

    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=3, **more)
    with harness.surroundings():
        return harness.run(theirs, harness.load(how)[1], how)


def scores(sample: dict[str, Any]) -> list[float]:
    """Log-likelihoods of a question's answers."""
    return [float(answer[0]) if isinstance(answer, (tuple, list)) else answer for (answer,) in sample["resps"]]


def assert_same(found: Any, theirs: dict[str, Any]) -> None:
    """The same figures, and answers to every question."""
    wanted = {(one.task, one.metric): one.value for one in figures.figures(theirs)}
    assert {(one.task, one.metric): one.value for one in found.figures} == pytest.approx(wanted, rel=1e-4)
    for task, samples in theirs["samples"].items():
        for one, other in zip(found.samples[task], samples, strict=True):
            assert one["arguments"] == other["arguments"]
            if task.startswith("answers"):
                assert one["resps"] == other["resps"]
            else:
                assert scores(one) == pytest.approx(scores(other), rel=1e-5, abs=1e-3)
