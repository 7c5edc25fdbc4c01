"""Texts for tests, and what is read or refused of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enginesmith.convert.errors import InputError
from enginesmith.convert.sources.text import read_tokens

MESSAGES = [{"role": "user", "content": "the quick brown fox"}, {"role": "assistant", "content": "stops here"}]


def ids_of(source: str | Path, folder: Path, sequences: int = 1000, length: int = 4, vocabulary: int = 1 << 20) -> Any:
    return read_tokens(str(source), folder, sequences, length, vocabulary, "--calib").ids


def refusal(source: str | Path, folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        ids_of(source, folder, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    return message


def written(path: Path, content: Any) -> Path:
    """A file: text as it is, lines of JSON for .jsonl, JSON for anything else."""
    if not isinstance(content, str):
        lines = [json.dumps(record) for record in content]
        content = "\n".join(lines) + "\n" if path.suffix == ".jsonl" else json.dumps(content)
    path.write_text(content)
    return path
