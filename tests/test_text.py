"""Texts to calibrate on: where they come from, how they become sequences, and what must not hang or mislead."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from enginesmith.build import pipeline
from enginesmith.convert.errors import InputError
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.prove.execution import held_out
from enginesmith.convert.sources import documents, tokenizer
from enginesmith.convert.sources.documents import blocks
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.sources.text import content_hash
from tests.conftest import write_model
from tests.triton_folders import VOCABULARY, write_tokenizer

from .texts import MESSAGES, ids_of, refusal, written

TEXTS = ["def f(x):\n    return x\n\nprint(f(1))", "the quick  brown fox\nstops here", "\u4f60\u597d \u4e16\u754c"] * 3
RENDERED = "[user]the quick brown fox\n[assistant]stops here\n"


@pytest.fixture(scope="module")
def begins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that begins every prompt with <s>, id 1, as its chat template does too."""
    folder = write_tokenizer(tmp_path_factory.mktemp("begins"), "sentencepiece", chat=True)
    template = folder / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    return folder


def sparse(path: Path, content: str) -> Path:
    """A file of 10 GB that begins with a text, and goes on with null characters."""
    written(path, content)
    os.truncate(path, 10 * 10**9)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.jsonl", [{"text": one, "id": i} for i, one in enumerate(TEXTS)]),
        ("lines.json", "\n\n".join(json.dumps({"text": one}) for one in TEXTS)),
        ("list.json", [{"text": one} for one in TEXTS]),
        ("pretty.json", json.dumps([{"id": [1, {}], "text": one} for one in TEXTS], indent=1)),
        ("strings.json", TEXTS),
        ("object.json", {"version": 1, "data": [{"text": one} for one in TEXTS]}),
        ("one.json", {"text": "\n\n".join(TEXTS), "tags": ["a"]}),
        ("empty_ones.jsonl", [{"text": ""}, {"text": None}, *({"text": one} for one in TEXTS), {"text": ""}]),
    ],
)
def test_records_are_read_as_their_texts(name: str, content: Any, bytewise: Path, tmp_path: Path) -> None:
    expected = ids_of(written(tmp_path / "all.txt", "\n\n".join(TEXTS)), bytewise)
    assert torch.equal(ids_of(written(tmp_path / name, content), bytewise), expected)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "the quick", "completion": "brown fox stops"},
        {"instruction": "the quick", "input": "", "output": "brown fox stops"},
        {"instruction": "the", "input": "quick", "response": "brown fox stops"},
        {"prompt": "the quick", "response": "brown fox stops", "prompt_id": 3},
    ],
)
def test_questions_and_answers_are_lines(record: dict[str, Any], bytewise: Path, tmp_path: Path) -> None:
    lines = "\n".join(value for value in record.values() if value and isinstance(value, str))
    expected = ids_of(written(tmp_path / "text.txt", lines), bytewise)
    assert torch.equal(ids_of(written(tmp_path / "records.jsonl", [record]), bytewise), expected)


@pytest.mark.parametrize(
    "record", [{"messages": MESSAGES, "prompt": "x"}, {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}]
)
def test_messages_go_through_the_chat_template(record: dict[str, Any], bytewise: Path, tmp_path: Path) -> None:
    expected = ids_of(written(tmp_path / "text.txt", RENDERED * 2), bytewise)
    assert torch.equal(ids_of(written(tmp_path / "records.jsonl", [record] * 2), bytewise), expected)


def test_messages_without_a_template(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer", "byte_level")
    message = refusal(written(tmp_path / "chat.jsonl", [{"messages": MESSAGES}]), folder)
    assert "line 1: holds messages" in message
    assert "no chat template; add its chat_template.jinja, or give records with text" in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.jsonl",
            [{"text": "abc"}, {"question": "x", "answer\x1b[0m": "y"}],
            "line 2: no text in its fields (question,",
        ),
        ("a.json", [{"rows": 1}], "line 1: no text in its fields (rows)"),
        ("a.json", {"rows": {"text": "x"}}, "no text in its fields (rows)"),
        ("a.json", {}, "no text in its fields (none)"),
        ("a.json", [1, 2], "holds 1, which is no record"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": b}\n' + '{"text": "c"}\n' * 9, "line 3: not JSON"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b\n', "line 2: not JSON"),
        ("a.json", '[{"text": "a"},\n{"text": "b"}\n{"text": "c"}]', "line 3: not JSON"),
        ("a.json", '[{"text": "a"}', "not JSON"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.json", "[]", "is empty"),
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", [{"text": ""}], "is empty"),
        ("a.jsonl", [{"text": 5}], "line 1: text is not text"),
        ("a.jsonl", [{"messages": "hello"}], "messages is not a list of objects with role and content"),
        ("a.jsonl", [{"messages": [{"from": "human", "value": "hello"}]}], "messages is not a list of objects"),
        ("a.jsonl", '{"text": "\\ud800"}', "half a character"),
        ("a.jsonl", '{"text": ' + "9" * 5000 + "}", "line 1"),
    ],
)
def test_records_that_cannot_be_used(name: str, content: Any, words: str, bytewise: Path, tmp_path: Path) -> None:
    assert words in refusal(written(tmp_path / name, content), bytewise)


def test_a_byte_order_mark_is_no_text(bytewise: Path, tmp_path: Path) -> None:
    for name, content in (("a.txt", "hello there"), ("a.jsonl", '{"text": "hello there"}')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert torch.equal(
            ids_of(tmp_path / name, bytewise), ids_of(written(tmp_path / "b.txt", "hello there"), bytewise)
        )


def test_every_sequence_begins_as_a_prompt_does(begins: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "text.txt", "the stop hello " * 20)
    ids = ids_of(source, begins, 5, 6)
    whole = tokenizer.Tokenizer(begins, "--calib").ids("the stop hello " * 20)
    assert ids.shape == (5, 6)
    assert ids[:, 0].tolist() == [1] * 5
    assert ids[:, 1:].flatten().tolist() == whole[:25]


def test_a_template_that_writes_bos_gives_no_second_one(begins: Path, tmp_path: Path) -> None:
    ids = ids_of(written(tmp_path / "chat.jsonl", [{"messages": MESSAGES}] * 3), begins, 1, 100)
    assert (ids == 1).sum() == 1
    assert ids[0, 0] == 1


def test_verify_reads_as_calibration_does(begins: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "hf", vocab_size=VOCABULARY)
    for path in begins.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    source = written(tmp_path / "chat.jsonl", [{"messages": MESSAGES}] * 9)
    expected = ids_of(source, begins, 3, 24)
    assert torch.equal(held_out(Source(model), str(source), 3, 24), expected)


def test_blocks_are_cut_where_tokens_end(bytewise: Path) -> None:
    python = documents.built_in("pydoc")[:20_000]
    for content in (python, "word " * 2000, "x" * 3000, "\n" * 3000, ""):
        for size in (64, 1000, 5000):
            parts = list(blocks([content[:7], content[7:]], size))
            assert "".join(parts) == content
            assert all(len(part) <= size for part in parts)
    words = Tokenizer(models.BPE())  # of GPT-2's kind: white space first
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.train_from_iterator([python], trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False))
    for size in (1000, 5000):
        assert [i for part in blocks([python], size) for i in words.encode(part).ids] == words.encode(python).ids


def test_only_what_is_needed_is_read(bytewise: Path, tmp_path: Path) -> None:
    content = documents.built_in("pydoc")[: 2**17]
    expected = ids_of(written(tmp_path / "all.txt", content), bytewise, 8, 64)
    record = json.dumps({"text": content})
    for name, begin in (("a.txt", content * 3), ("a.jsonl", (record + "\n") * 3), ("a.json", "[" + (record + ",") * 3)):
        assert torch.equal(ids_of(sparse(tmp_path / name, begin), bytewise, 8, 64), expected)


def test_what_never_becomes_text_is_not_read_to_its_end(bytewise: Path, tmp_path: Path) -> None:
    blank = written(tmp_path / "blank.txt", " \n" * 3 * 2**20)
    os.truncate(blank, 10 * 10**9)
    assert "has 0 tokens in" in refusal(blank, bytewise)
    assert "line 1: not JSON" in refusal(sparse(tmp_path / "a.jsonl", '{"text": "x" '), bytewise)
    assert "line 2: no text" in refusal(sparse(tmp_path / "b.jsonl", '{"text": "x"}\n{"y": "x"}\n'), bytewise)


@pytest.mark.parametrize("name", ["pipe.txt", "pipe", "pipe.jsonl", "pipe.json", "pipe.safetensors"])
def test_pipes_are_refused_at_once(name: str, bytewise: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    assert "not a regular file" in refusal(tmp_path / name, bytewise)


def test_devices_and_folders_are_refused(bytewise: Path, tmp_path: Path) -> None:
    assert "not a regular file" in refusal("/dev/zero", bytewise)
    assert "no data set in this folder" in refusal(tmp_path, bytewise)
    assert "no such file" in refusal(tmp_path / ("x" * 3000), bytewise)


def test_only_the_rows_that_are_needed_are_read(bytewise: Path, tmp_path: Path) -> None:
    path, rows = tmp_path / "ids.safetensors", 10**7
    size = rows * 128 * 8
    header = json.dumps({"input_ids": {"dtype": "I64", "shape": [rows, 128], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)
    assert ids_of(path, bytewise, 8, 24).shape == (8, 24)


@pytest.mark.parametrize(
    "ids", [torch.ones(8), torch.ones(0, 24).long(), torch.ones(8, 24), torch.ones(2, 8, 24).long()]
)
def test_tensors_that_are_no_ids(ids: torch.Tensor, bytewise: Path, tmp_path: Path) -> None:
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    assert "needs an integer tensor input_ids" in refusal(tmp_path / "ids.safetensors", bytewise)


def test_texts_that_are_too_short(bytewise: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "text.txt", "the quick")
    have = ids_of(source, bytewise, 1, 2).numel()
    assert f"tokens, less than one sequence of {have + 99}" in refusal(source, bytewise, length=have + 99)
    save_file({"input_ids": torch.ones(8, 24).long()}, tmp_path / "ids.safetensors")
    message = refusal(tmp_path / "ids.safetensors", bytewise, length=25)
    assert "has sequences of 24 tokens, fewer than the 25 asked for" in message
    for few in ({"sequences": 0}, {"length": 1}):
        assert "at least 1 sequence of 2 tokens is needed" in refusal(source, bytewise, **few)


def test_a_folder_of_records(bytewise: Path, tmp_path: Path) -> None:
    expected = ids_of(written(tmp_path / "all.txt", "\n\n".join(TEXTS)), bytewise)
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for i in range(3):
        written(folder / "data" / f"train-{i:05d}-of-00003.jsonl", [{"text": one} for one in TEXTS[3 * i : 3 * i + 3]])
    (folder / "README.md").write_text("not text to calibrate on")
    assert torch.equal(ids_of(folder, bytewise), expected)
    before = content_hash(str(folder))
    written(folder / "data" / "train-00002-of-00003.jsonl", [{"text": "x"}])
    assert content_hash(str(folder)) != before
    written(folder / "data" / "test-00000-of-00001.jsonl", [{"text": "x"}])
    assert "several splits (test, train)" in refusal(folder, bytewise)
    for files in (None, [], [1]):
        written(folder / "state.json", {"_data_files": files})
        assert "state.json names no data files" in refusal(folder, bytewise)


def test_parquet_and_datasets_folders(bytewise: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    expected = ids_of(written(tmp_path / "all.txt", "\n\n".join(TEXTS)), bytewise)
    table = arrow.table({"id": list(range(9)), "text": TEXTS, "other": [[{"a": None}]] * 9})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert torch.equal(ids_of(tmp_path / "a.parquet", bytewise), expected)
    folder = tmp_path / "saved" / "train"
    folder.mkdir(parents=True)
    with arrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    written(folder / "state.json", {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    assert torch.equal(ids_of(folder, bytewise), expected)
    written(tmp_path / "saved" / "dataset_dict.json", {"splits": ["train"]})
    assert "give the folder of one: ['train']" in refusal(tmp_path / "saved", bytewise)
    written(folder / "state.json", {"_data_files": [{"filename": "../../a.parquet"}]})
    assert "not a file of this folder" in refusal(folder, bytewise)
    parquet.write_table(arrow.table({"messages": [MESSAGES] * 2, "n": [1, 2]}), tmp_path / "chat.parquet")
    chat = ids_of(written(tmp_path / "chat.txt", RENDERED * 2), bytewise)
    assert torch.equal(ids_of(tmp_path / "chat.parquet", bytewise), chat)
    parquet.write_table(arrow.table({"question": ["x"], "answer": ["y"]}), tmp_path / "b.parquet")
    assert "record 1: no text in its fields (question, answer)" in refusal(tmp_path / "b.parquet", bytewise)
    for name in ("c.parquet", "c.arrow"):
        (tmp_path / name).write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
        assert "not readable as" in refusal(tmp_path / name, bytewise)


def test_without_pyarrow(bytewise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in refusal(written(tmp_path / "a.parquet", "PAR1"), bytewise)


def test_the_window_is_called_so(tmp_path: Path) -> None:
    model = write_model(tmp_path / "hf", architectures=["MistralForCausalLM"], sliding_window=16)
    with pytest.raises(InputError, match="--calib_seq_len 24 is longer than the model's sliding window of 16 tokens"):
        convert(ConvertOptions(str(model), str(tmp_path / "out"), quant="FP8", calib_seq_len=24))
    with pytest.raises(InputError, match="--seq_len 24 is longer than the model's sliding window of 16 tokens"):
        held_out(Source(model), "pydoc", 1, 24)


def test_a_manifest_says_what_read_the_text(tiny: Callable[..., Path], tmp_path: Path) -> None:
    versions = convert(ConvertOptions(str(tiny()), str(tmp_path / "out"))).manifest["versions"]
    assert versions.keys() >= {"enginesmith", "python", "tokenizers", "torch", "transformers"}
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_built_in_text_is_known_by_its_content(monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_hash("pydoc"), content_hash("pydoc-heldout")
    assert before[0] != before[1]
    monkeypatch.setattr("pydoc_data.topics.topics", {"a": "another Python's documentation"})
    assert content_hash("pydoc") not in before
    assert pipeline.content_hash is content_hash
    with pytest.raises(InputError, match="text pydok: no such file; give a file, or one of: pydoc"):
        content_hash("pydok")
