"""What a chat needs of its repository: every end token, exactly one BOS, a pad token that the engine knows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginesmith.build.triton import tokenizer as tokenizer_module
from enginesmith.build.triton.check import check
from enginesmith.build.triton.generate import generate, prepare
from enginesmith.build.triton.options import TritonOptions
from enginesmith.convert.errors import InputError

from .command import run
from .test_triton_models import error_of, lengths
from .triton_backend import Server, asked, echo, texts
from .triton_folders import write_engine, write_tokenizer

VOCABULARY = 311  # of the SentencePiece tokenizer: <unk>, <s>, </s> and more


def folders(
    folder: Path, ends: Any = None, settings: dict[str, Any] | None = None, chat: bool = False, **engine: Any
) -> dict[str, str]:
    """An engine and a tokenizer, with a generation_config.json of these ends and more in tokenizer_config.json."""
    tokenizer = write_tokenizer(folder / "tokenizer", chat=chat)
    if ends is not None:
        (tokenizer / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    path = tokenizer / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **(settings or {})}))
    made = write_engine(folder / "engine", **{"vocab_size": VOCABULARY, **engine})
    return {"engine_dir": str(made), "tokenizer_dir": str(tokenizer), "output_dir": str(folder / "repository")}


def prepared(served: Server, text: str = "the", **more: np.ndarray) -> dict[str, np.ndarray]:
    [answer] = served.call("preprocessing", {"QUERY": texts(text), "REQUEST_OUTPUT_LEN": lengths(1), **more})
    return dict(answer)


@pytest.mark.parametrize(
    ("ends", "served_as"),
    [
        ([7, 2, 9], [2, 7, 9]),  # the tokenizer's own is 2
        ([7, 9], [7, 9]),
        ([9, 9, 7], [9, 7]),
        (7, [7]),
        (None, [2]),
        ([], [2]),
        (-1, [2]),
    ],
)
def test_every_end_token_ends_an_answer(ends: Any, served_as: list[int], tmp_path: Path) -> None:
    repository = generate(TritonOptions(**folders(tmp_path, ends), decoupled=True))
    assert check(repository) == []
    served = Server(repository, echo)
    answer = prepared(served)
    assert answer["OUT_END_ID"].tolist() == [served_as[:1]]
    others = served_as[1:]
    assert answer["STOP_WORDS_IDS"].tolist() == [[others, list(range(1, len(others) + 1))]]
    asked_for = prepared(served, STOP_WORDS_DICT=texts("stop"))["STOP_WORDS_IDS"][0]
    assert asked_for[0].tolist()[2:] == others
    own = prepared(served, END_ID=np.array([[5]], np.int32))
    assert own["OUT_END_ID"].tolist() == [[5]]
    assert own["STOP_WORDS_IDS"].shape == (1, 2, 0)


def test_end_tokens_of_a_config_without_a_generation_config(tmp_path: Path) -> None:
    given = folders(tmp_path)
    (tmp_path / "tokenizer" / "config.json").write_text('{"eos_token_id": [8, 2]}')
    assert prepare(TritonOptions(**given)).special.end_ids == [2, 8]
    (tmp_path / "tokenizer" / "config.json").write_text('{"eos_token_id": 8}')
    assert prepare(TritonOptions(**given)).special.end_ids == [2, 8]
    (tmp_path / "tokenizer" / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert prepare(TritonOptions(**given)).special.end_ids == [7]


@pytest.mark.parametrize(
    "ends", ["2", [2, "7"], [True], -2, [-1], 311, [2, 311], 2.0, {"a": 1}, [[2]], list(range(100)), 10**400]
)
def test_end_tokens_that_are_none(ends: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"generation_config\.json: eos_token_id is ") as raised:
        generate(TritonOptions(**folders(tmp_path, ends)))
    assert len(str(raised.value)) < 400
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("content", ["[", "[]", "\xff"])
def test_a_generation_config_that_is_none(content: str, tmp_path: Path) -> None:
    given = folders(tmp_path)
    (tmp_path / "tokenizer" / "generation_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"generation_config\.json: "):
        generate(TritonOptions(**given))
    (tmp_path / "tokenizer" / "generation_config.json").unlink()
    os.mkfifo(tmp_path / "tokenizer" / "generation_config.json")
    with pytest.raises(InputError, match="not a regular file"):
        generate(TritonOptions(**given))


def test_a_self_contained_repository_keeps_them(tmp_path: Path) -> None:
    repository = generate(TritonOptions(**folders(tmp_path, [2, 7]), self_contained=True))
    copied = repository / "preprocessing/1/tokenizer/generation_config.json"
    assert json.loads(copied.read_text()) == {"eos_token_id": [2, 7]}


BOS, MESSAGE = "<s>", "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("template", "text", "bos"),
    [
        (None, "the", 1),
        (None, "<s>the", 1),
        (None, "<s><s>the", 1),
        (None, "", 1),
        ("{{ bos_token }}" + MESSAGE, "the", 1),
        ("\n {{ bos_token }}" + MESSAGE, "the", 1),
        ("{{ bos_token }}" + MESSAGE, "<s>the", 1),
        (MESSAGE, "the", 1),
        (MESSAGE, "<s>the", 1),
    ],
)
def test_exactly_one_bos(template: str | None, text: str, bos: int, tmp_path: Path) -> None:
    given = folders(tmp_path, settings={"chat_template": template} if template else {})
    served = Server(generate(TritonOptions(**given, chat=template is not None)), echo)
    ids = prepared(served, text)["INPUT_ID"][0].tolist()
    assert (ids[0], ids.count(1)) == (1, bos)


def test_no_bos_where_none_is_wanted(tmp_path: Path) -> None:
    given = folders(tmp_path, settings={"chat_template": MESSAGE})
    served = Server(generate(TritonOptions(**given, chat=True, add_special_tokens=False)), echo)
    assert 1 not in prepared(served)["INPUT_ID"]


def add_pad(folder: Path, index: int) -> None:
    """A token <pad> of this id, as fine-tuned models have one behind the vocabulary."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    token = {"id": index, "content": "<pad>", "special": True, "normalized": False}
    content["added_tokens"].append({**token, "single_word": False, "lstrip": False, "rstrip": False})
    path.write_text(json.dumps(content))
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token": "<pad>"}))


def test_a_pad_token_beyond_the_vocabulary(tmp_path: Path) -> None:
    given = folders(tmp_path)
    add_pad(tmp_path / "tokenizer", VOCABULARY)
    told = run("triton", *(f"--{name}={value}" for name, value in given.items())).stderr
    assert told == "note: the pad token '<pad>' has id 311, the engine's vocabulary ends at 310; 2 pads instead\n"
    repository = tmp_path / "repository"
    assert check(repository) == []
    served = Server(repository, echo)
    both = served.call("preprocessing", {"QUERY": texts("the", "the stop"), "REQUEST_OUTPUT_LEN": lengths(2)})[0]
    assert both["OUT_PAD_ID"].tolist() == [[2], [2]]
    assert both["INPUT_ID"].max() < VOCABULARY
    assert "text_input has '<pad>', id 311; the engine knows those below 311" in error_of(
        served.call("ensemble", asked("the <pad>"))
    )
    answer = prepared(served, STOP_WORDS_DICT=texts("<pad>"), BAD_WORDS_DICT=texts("the"))
    assert answer["STOP_WORDS_IDS"].size == 0 or answer["STOP_WORDS_IDS"].max() < VOCABULARY
    refused = served.call(
        "preprocessing", {"QUERY": texts("a"), "REQUEST_OUTPUT_LEN": lengths(1), "PAD_ID": lengths(1, 311)}
    )
    assert "pad_id is 311" in error_of(refused)


def test_other_tokens_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    given = folders(tmp_path, vocab_size=310)
    add_pad(tmp_path / "tokenizer", VOCABULARY)
    with pytest.raises(InputError, match="has token id 310"):
        generate(TritonOptions(**given))


LOOPS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
GROWS = (
    "{% set ns = namespace(x='a' * 1000) %}"
    "{% for a in range(99999) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
)


@pytest.mark.parametrize(
    ("template", "words"), [(LOOPS, "takes more than 1 seconds"), (GROWS, "takes more than 0.0625 GiB")]
)
def test_a_template_without_end(template: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "RENDER_SECONDS", 1 if template is LOOPS else 30)
    monkeypatch.setattr(tokenizer_module, "RENDER_BYTES", 64 * 2**20)
    with pytest.raises(InputError) as raised:
        generate(TritonOptions(**folders(tmp_path, settings={"chat_template": template}), chat=True))
    assert str(raised.value).startswith("--chat: the chat template in ")
    assert words in str(raised.value)


def test_a_template_that_says_much_when_it_fails(tmp_path: Path) -> None:
    given = folders(tmp_path, settings={"chat_template": "{{ raise_exception('\\x1b' + 'long ' * 9999) }}"})
    with pytest.raises(InputError) as raised:
        generate(TritonOptions(**given, chat=True))
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400 + len(str(tmp_path))
