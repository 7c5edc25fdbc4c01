"""Tokenizers that are broken, hostile or odd: one line blames them, and none of them hangs or crashes the command."""

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
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from enginesmith.convert.errors import InputError
from enginesmith.convert.files import bounded
from enginesmith.convert.sources import documents, text, tokenizer
from tests.command import run
from tests.conftest import write_model
from tests.triton_folders import VOCABULARY, write_tokenizer

from .texts import MESSAGES, ids_of, refusal, written


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


def test_ids_beyond_the_embedding_are_the_tokenizers_fault(bytewise: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "text.txt", "def f(x):\n    return x, 123")
    message = refusal(source, bytewise, vocabulary=3)
    assert "tokenizer gives token id" in message
    assert "outside the vocabulary of 3" in message
    assert "text.txt" not in message
    save_file({"input_ids": torch.tensor([[1, 2, 3, 9]])}, tmp_path / "ids.safetensors")
    assert "ids.safetensors holds token id 9" in refusal(tmp_path / "ids.safetensors", bytewise, vocabulary=9)


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


def test_a_tokenizer_that_never_ends_is_ended(bytewise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "SECONDS", 0.3)
    monkeypatch.setattr(tokenizer.Tokenizer, "ids", lambda *_: time.sleep(600))
    assert "takes more than 0 seconds" in refusal(written(tmp_path / "a.txt", "hello"), bytewise, sequences=1)


def test_a_tokenizer_that_crashes_is_one_line(bytewise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer.Tokenizer, "ids", lambda *_: os.abort())
    assert "crashes" in refusal(written(tmp_path / "a.txt", "hello"), bytewise)


def test_memory_is_bounded(bytewise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MEMORY", 2**26)
    monkeypatch.setattr(tokenizer.Tokenizer, "ids", lambda *_: bytes(2**28))
    assert "takes more than" in refusal(written(tmp_path / "a.txt", "hello"), bytewise)


def test_closed_standard_streams_are_no_matter(bytewise: Path, tmp_path: Path) -> None:
    words = "import os; os.closerange(0, 3); from enginesmith.convert.files.bounded import in_child; "
    words += "os._exit(in_child(lambda: bytes([42]), 60, 'it')[0])"
    assert subprocess.run([sys.executable, "-c", words]).returncode == 42


def test_a_fault_of_ours_is_no_bad_input(bytewise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "plain_text", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        ids_of(written(tmp_path / "a.txt", "hello"), bytewise)


def test_odd_files_among_the_tokenizers(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer", "byte_level")
    os.mkfifo(folder / "added_tokens.json")
    assert "added_tokens.json: not a regular file" in refusal(written(tmp_path / "a.txt", "hello"), folder)
    (folder / "added_tokens.json").unlink()
    os.truncate(folder / "tokenizer.json", 2**29)
    assert "tokenizer.json: larger than any tokenizer's file" in refusal(tmp_path / "a.txt", folder)


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
