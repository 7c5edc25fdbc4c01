"""Facts, sums and a text, answered by SmolLM2 as the harness's own Hugging Face model answers them."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest

import enginesmith as es
from enginesmith.convert.evaluate.options import EvaluateOptions

from .evaluating import assert_same, of_transformers, write_task

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'enginesmith[evaluate]'")

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "China": "Beijing",
    "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Austria": "Vienna", "Poland": "Warsaw", "Norway": "Oslo",
    "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "India": "New Delhi", "Argentina": "Buenos Aires",
    "Finland": "Helsinki", "Ireland": "Dublin", "Hungary": "Budapest", "Chile": "Santiago", "Turkey": "Ankara",
    "Canada": "Ottawa", "Australia": "Canberra",
}  # fmt: skip


def write_records(folder: Path) -> Path:
    """24 questions with four answers each, 24 sums, and three pages."""
    cities = list(CAPITALS.values())
    choices = [
        {"question": f"What is the capital of {country}?", "answer": n % 4,
         "choices": [cities[(n + 5 * (place - n % 4)) % len(cities)] for place in range(4)]}
        for n, country in enumerate(CAPITALS)
    ]  # fmt: skip
    sums = [(7 * n % 23 + 1, 5 * n % 19 + 1) for n in range(24)]
    answers = [{"question": f"2 + 3 = 5, {a} + {b} =", "answer": f" {a + b}"} for a, b in sums]
    texts = [{"text": topics[name][:600]} for name in sorted(topics)[:3]]
    ending = {"generation_kwargs": {"until": ["\n", ","], "max_gen_toks": 6}, "doc_to_text": "{{question}}"}
    for kind, records, more in (("choices", choices, {}), ("answers", answers, ending), ("texts", texts, {})):
        write_task(folder, kind, kind, **more)
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_smollm2(smollm2: Path, tmp_path: Path) -> None:
    folder = write_records(tmp_path / "tasks")
    how = EvaluateOptions(("choices", "answers", "texts"), include_path=str(folder))
    found = es.evaluate(smollm2, how)
    assert_same(found, of_transformers(smollm2, how))
    main = {one.task: one.value for one in found.figures if one.main}
    assert main["choices"] > 0.8
    assert main["answers"] > 0.2
