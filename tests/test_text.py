"""Texts to calibrate on: where they come from, how they become sequences, and what must not hang, crash or mislead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers

from enginesmith.build import pipeline
from enginesmith.convert.errors import InputError
from enginesmith.convert.files import bounded
from enginesmith.convert.job.conversion import convert
from enginesmith.convert.job.options import ConvertOptions
from enginesmith.convert.prove.execution import held_out
from enginesmith.convert.sources import documents, text, tokenizer
from enginesmith.convert.sources.documents import blocks
from enginesmith.convert.sources.folder import Source
from enginesmith.convert.sources.text import content_hash, read_tokens
from tests.command import run
from tests.conftest import write_model
from tests.triton_folders import VOCABULARY, write_tokenizer

TEXTS = ["def f(x):\n    return x\n\nprint(f(1))", "the quick  brown fox\nstops here", "\u4f60\u597d \u4e16\u754c"] * 3
RENDERED = "[user]the quick brown fox\n[assistant]stops here\n"
MESSAGES = [{"role": "user", "content": "the quick brown fox"}, {"role": "assistant", "content": "stops here"}]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with a chat template, which adds no token to a prompt."""
    return write_tokenizer(tmp_path_factory.mktemp("plain"), "byte_level", chat=True)


@pytest.fixture(scope="module")
def begins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that begins every prompt with <s>, id 1, as its chat template does too."""
    folder = write_tokenizer(tmp_path_factory.mktemp("begins"), "sentencepiece", chat=True)
    template = folder / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    return folder


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
def test_records_are_read_as_their_texts(name: str, content: Any, plain: Path, tmp_path: Path) -> None:
    expected = ids_of(written(tmp_path / "all.txt", "\n\n".join(TEXTS)), plain)
    assert torch.equal(ids_of(written(tmp_path / name, content), plain), expected)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "the quick", "completion": "brown fox stops"},
        {"instruction": "the quick", "input": "", "output": "brown fox stops"},
        {"instruction": "the", "input": "quick", "response": "brown fox stops"},
        {"prompt": "the quick", "response": "brown fox stops", "prompt_id": 3},
    ],
)
def test_questions_and_answers_are_lines(record: dict[str, Any], plain: Path, tmp_path: Path) -> None:
    lines = "\n".join(value for value in record.values() if value and isinstance(value, str))
    expected = ids_of(written(tmp_path / "text.txt", lines), plain)
    assert torch.equal(ids_of(written(tmp_path / "records.jsonl", [record]), plain), expected)


@pytest.mark.parametrize(
    "record", [{"messages": MESSAGES, "prompt": "x"}, {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}]
)
def test_messages_go_through_the_chat_template(record: dict[str, Any], plain: Path, tmp_path: Path) -> None:
    expected = ids_of(written(tmp_path / "text.txt", RENDERED * 2), plain)
    assert torch.equal(ids_of(written(tmp_path / "records.jsonl", [record] * 2), plain), expected)


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
def test_records_that_cannot_be_used(name: str, content: Any, words: str, plain: Path, tmp_path: Path) -> None:
    assert words in refusal(written(tmp_path / name, content), plain)


def test_a_byte_order_mark_is_no_text(plain: Path, tmp_path: Path) -> None:
    for name, content in (("a.txt", "hello there"), ("a.jsonl", '{"text": "hello there"}')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert torch.equal(ids_of(tmp_path / name, plain), ids_of(written(tmp_path / "b.txt", "hello there"), plain))


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


def test_blocks_are_cut_where_tokens_end(plain: Path) -> None:
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


def test_only_what_is_needed_is_read(plain: Path, tmp_path: Path) -> None:
    content = documents.built_in("pydoc")[: 2**17]
    expected = ids_of(written(tmp_path / "all.txt", content), plain, 8, 64)
    record = json.dumps({"text": content})
    for name, begin in (("a.txt", content * 3), ("a.jsonl", (record + "\n") * 3), ("a.json", "[" + (record + ",") * 3)):
        assert torch.equal(ids_of(sparse(tmp_path / name, begin), plain, 8, 64), expected)


def test_what_never_becomes_text_is_not_read_to_its_end(plain: Path, tmp_path: Path) -> None:
    blank = written(tmp_path / "blank.txt", " \n" * 3 * 2**20)
    os.truncate(blank, 10 * 10**9)
    assert "has 0 tokens in" in refusal(blank, plain)
    assert "line 1: not JSON" in refusal(sparse(tmp_path / "a.jsonl", '{"text": "x" '), plain)
    assert "line 2: no text" in refusal(sparse(tmp_path / "b.jsonl", '{"text": "x"}\n{"y": "x"}\n'), plain)


@pytest.mark.parametrize("name", ["pipe.txt", "pipe", "pipe.jsonl", "pipe.json", "pipe.safetensors"])
def test_pipes_are_refused_at_once(name: str, plain: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    assert "not a regular file" in refusal(tmp_path / name, plain)


def test_devices_and_folders_are_refused(plain: Path, tmp_path: Path) -> None:
    assert "not a regular file" in refusal("/dev/zero", plain)
    assert "no data set in this folder" in refusal(tmp_path, plain)
    assert "no such file" in refusal(tmp_path / ("x" * 3000), plain)


def broken_model(model: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        made = Tokenizer(model)
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')

    return write


def changed_settings(**settings: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return write


def backtracking(folder: Path) -> None:
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?:(?:a|aa)+)+$"), "isolated")
    made.save(str(folder / "tokenizer.json"))


def broken_charsmap(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    charsmap = "AAAAAP////8AAAAA"
    path.write_text(json.dumps(content | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap}}))


def surrogates(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": {"\\ud800": 0}}}')


BROKEN: dict[str, Callable[[Path], None]] = {
    "WordLevel": broken_model(models.WordLevel({"a": 0}, unk_token="[UNK]")),
    "WordPiece": broken_model(models.WordPiece({"a": 0}, unk_token="[UNK]")),
    "Unigram": broken_model(models.Unigram([("a", -1.0)], unk_id=None)),
    "BPE": broken_model(models.BPE({"a": 0}, [], unk_token="[UNK]")),
    "empty": broken_model(models.BPE({}, [])),
    "model_max_length": changed_settings(model_max_length="x"),
    "tokenizer_class": changed_settings(tokenizer_class="BertTokenizer"),
    "unknown class": changed_settings(tokenizer_class="\x1b[31m" + "x" * 5000),
    "bos_token": changed_settings(bos_token=5),
    "auto_map": changed_settings(auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}, tokenizer_class="Evil"),
    "backtracking": backtracking,
    "charsmap": broken_charsmap,
    "surrogates": surrogates,
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_tokenizer_is_one_line(
    fault: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """Some of them are refused by one version of transformers and work in another: no traceback, no noise in either."""
    folder = write_tokenizer(tmp_path / "tokenizer", "byte_level")
    BROKEN[fault](folder)
    source = written(tmp_path / "text.txt", "a quick brown " + "a" * 5000 + "!\n")
    try:
        ids_of(source, folder)
    except InputError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 400
        assert str(folder)[-40:] in message or "--calib" in message
    else:
        assert fault in ("BPE", "tokenizer_class", "bos_token", "auto_map", "model_max_length", "unknown class")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_tokenizers_that_cannot_work_are_blamed(tmp_path: Path) -> None:
    for fault in ("WordLevel", "WordPiece", "Unigram", "empty", "backtracking", "model_max_length"):
        folder = write_tokenizer(tmp_path / fault, "byte_level")
        BROKEN[fault](folder)
        source = written(tmp_path / "text.txt", "a quick brown " + "a" * 5000 + "!\n")
        assert str(folder)[-40:] in refusal(source, folder), fault


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    model = write_model(tmp_path / "hf", vocab_size=VOCABULARY)
    write_tokenizer(model, "byte_level")
    backtracking(model)
    source = written(tmp_path / "text.txt", "a" * 5000 + "!\n")
    words = [
        "convert",
        "--model_dir",
        model,
        "--output_dir",
        tmp_path / "out",
        "--quant",
        "W4A16_AWQ",
        "--calib",
        source,
    ]
    done = run(*words, "--calib_seq_len", 16, "--group_size", 64, expect=2)
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_ids_beyond_the_embedding_are_the_tokenizers_fault(plain: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "text.txt", "def f(x):\n    return x, 123")
    message = refusal(source, plain, vocabulary=3)
    assert "tokenizer gives token id" in message
    assert "outside the vocabulary of 3" in message
    assert "text.txt" not in message
    save_file({"input_ids": torch.tensor([[1, 2, 3, 9]])}, tmp_path / "ids.safetensors")
    assert "ids.safetensors holds token id 9" in refusal(tmp_path / "ids.safetensors", plain, vocabulary=9)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 10 ** 12 }}",
        "{{ raise_exception('no\nsuch\x1b[31m') }}",
        "{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}",
        "{% if %}",
    ],
)
def test_templates_that_do_not_render(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "RENDERING_SECONDS", 0.2)
    folder = write_tokenizer(tmp_path / "tokenizer", "byte_level", chat=True)
    (folder / "chat_template.jinja").write_text(template)
    assert str(folder)[-40:] in refusal(written(tmp_path / "chat.jsonl", [{"messages": MESSAGES}]), folder)


def test_a_tokenizer_that_never_ends_is_ended(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "SECONDS", 0.3)
    monkeypatch.setattr(tokenizer.Tokenizer, "ids", lambda *_: time.sleep(600))
    assert "takes more than 0 seconds" in refusal(written(tmp_path / "a.txt", "hello"), plain, sequences=1)


def test_a_tokenizer_that_crashes_is_one_line(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer.Tokenizer, "ids", lambda *_: os.abort())
    assert "crashes" in refusal(written(tmp_path / "a.txt", "hello"), plain)


def test_memory_is_bounded(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MEMORY", 2**26)
    monkeypatch.setattr(tokenizer.Tokenizer, "ids", lambda *_: bytes(2**28))
    assert "takes more than" in refusal(written(tmp_path / "a.txt", "hello"), plain)


def test_closed_standard_streams_are_no_matter(plain: Path, tmp_path: Path) -> None:
    words = "import os; os.closerange(0, 3); from enginesmith.convert.files.bounded import in_child; "
    words += "os._exit(in_child(lambda: bytes([42]), 60, 'it')[0])"
    assert subprocess.run([sys.executable, "-c", words]).returncode == 42


def test_a_fault_of_ours_is_no_bad_input(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "plain_text", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        ids_of(written(tmp_path / "a.txt", "hello"), plain)


def test_odd_files_among_the_tokenizers(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer", "byte_level")
    os.mkfifo(folder / "added_tokens.json")
    assert "added_tokens.json: not a regular file" in refusal(written(tmp_path / "a.txt", "hello"), folder)
    (folder / "added_tokens.json").unlink()
    os.truncate(folder / "tokenizer.json", 2**29)
    assert "tokenizer.json: larger than any tokenizer's file" in refusal(tmp_path / "a.txt", folder)


def test_only_the_rows_that_are_needed_are_read(plain: Path, tmp_path: Path) -> None:
    path, rows = tmp_path / "ids.safetensors", 10**7
    size = rows * 128 * 8
    header = json.dumps({"input_ids": {"dtype": "I64", "shape": [rows, 128], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)
    assert ids_of(path, plain, 8, 24).shape == (8, 24)


@pytest.mark.parametrize(
    "ids", [torch.ones(8), torch.ones(0, 24).long(), torch.ones(8, 24), torch.ones(2, 8, 24).long()]
)
def test_tensors_that_are_no_ids(ids: torch.Tensor, plain: Path, tmp_path: Path) -> None:
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    assert "needs an integer tensor input_ids" in refusal(tmp_path / "ids.safetensors", plain)


def test_texts_that_are_too_short(plain: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "text.txt", "the quick")
    have = ids_of(source, plain, 1, 2).numel()
    assert f"tokens, less than one sequence of {have + 99}" in refusal(source, plain, length=have + 99)
    save_file({"input_ids": torch.ones(8, 24).long()}, tmp_path / "ids.safetensors")
    message = refusal(tmp_path / "ids.safetensors", plain, length=25)
    assert "has sequences of 24 tokens, fewer than the 25 asked for" in message
    for few in ({"sequences": 0}, {"length": 1}):
        assert "at least 1 sequence of 2 tokens is needed" in refusal(source, plain, **few)


def test_a_folder_of_records(plain: Path, tmp_path: Path) -> None:
    expected = ids_of(written(tmp_path / "all.txt", "\n\n".join(TEXTS)), plain)
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for i in range(3):
        written(folder / "data" / f"train-{i:05d}-of-00003.jsonl", [{"text": one} for one in TEXTS[3 * i : 3 * i + 3]])
    (folder / "README.md").write_text("not text to calibrate on")
    assert torch.equal(ids_of(folder, plain), expected)
    before = content_hash(str(folder))
    written(folder / "data" / "train-00002-of-00003.jsonl", [{"text": "x"}])
    assert content_hash(str(folder)) != before
    written(folder / "data" / "test-00000-of-00001.jsonl", [{"text": "x"}])
    assert "several splits (test, train)" in refusal(folder, plain)
    for files in (None, [], [1]):
        written(folder / "state.json", {"_data_files": files})
        assert "state.json names no data files" in refusal(folder, plain)


def test_parquet_and_datasets_folders(plain: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    expected = ids_of(written(tmp_path / "all.txt", "\n\n".join(TEXTS)), plain)
    table = arrow.table({"id": list(range(9)), "text": TEXTS, "other": [[{"a": None}]] * 9})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert torch.equal(ids_of(tmp_path / "a.parquet", plain), expected)
    folder = tmp_path / "saved" / "train"
    folder.mkdir(parents=True)
    with arrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    written(folder / "state.json", {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    assert torch.equal(ids_of(folder, plain), expected)
    written(tmp_path / "saved" / "dataset_dict.json", {"splits": ["train"]})
    assert "give the folder of one: ['train']" in refusal(tmp_path / "saved", plain)
    written(folder / "state.json", {"_data_files": [{"filename": "../../a.parquet"}]})
    assert "not a file of this folder" in refusal(folder, plain)
    parquet.write_table(arrow.table({"messages": [MESSAGES] * 2, "n": [1, 2]}), tmp_path / "chat.parquet")
    chat = ids_of(written(tmp_path / "chat.txt", RENDERED * 2), plain)
    assert torch.equal(ids_of(tmp_path / "chat.parquet", plain), chat)
    parquet.write_table(arrow.table({"question": ["x"], "answer": ["y"]}), tmp_path / "b.parquet")
    assert "record 1: no text in its fields (question, answer)" in refusal(tmp_path / "b.parquet", plain)
    for name in ("c.parquet", "c.arrow"):
        (tmp_path / name).write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
        assert "not readable as" in refusal(tmp_path / name, plain)


def test_without_pyarrow(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in refusal(written(tmp_path / "a.parquet", "PAR1"), plain)


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


def test_special_tokens_at_the_front_are_the_tokenizers_own(tmp_path: Path) -> None:
    """A tokenizer with a BOS token that it does not put in front of prompts, such as SmolLM2's."""
    made = Tokenizer.from_file(str(write_tokenizer(tmp_path / "a", "byte_level") / "tokenizer.json"))
    made.add_special_tokens([AddedToken("<bos>", special=True)])
    made.save(str(tmp_path / "a" / "tokenizer.json"))
    changed_settings(bos_token="<bos>")(tmp_path / "a")
    source = written(tmp_path / "text.txt", "the quick brown fox " * 9)
    bos = made.token_to_id("<bos>")
    assert not (ids_of(source, tmp_path / "a") == bos).any()


def compute(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_python_code_that_computes_too_long_is_stopped() -> None:
    with pytest.raises(TimeoutError, match=r"not done after 0\.1 seconds"), bounded.processor_limit(0.1):
        compute(20)
