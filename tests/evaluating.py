"""A small language model with a tokenizer, and task files of every kind beside their records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

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
