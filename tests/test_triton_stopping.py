"""Stop words on the text of an answer: found wherever they lie in tokens, the same whole or streamed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginesmith.convert.tokens.stopping import StopWatch, cut
from enginesmith.convert.tokens.tokenization import encode

from .test_triton_models import STREAM, answers, row_of, serve
from .triton_backend import asked, tokens

WORDS = ["ab", "abc", "bca", "c\n", "\n\n", "aaab", "\u00e9", "b"]


def words(*texts: str) -> dict[str, np.ndarray]:
    return {"stop_words": np.array([[text.encode() for text in texts]], np.object_)}


def test_an_answer_ends_where_the_first_complete_stop_word_begins() -> None:
    assert cut("one. two", ["two", ". "]) == ("one", True)
    assert cut("xabcd", ["bc", "abcd"]) == ("xa", True)
    assert cut("xabc", ["bc", "abc"]) == ("x", True)
    assert cut("abc", ["abcd"]) == ("abc", False)
    assert cut("stop: stop", ["stop"], start=4) == ("stop: ", True)


def test_pieces_joined_are_the_cut_whole() -> None:
    draw = random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choices("abc\n\u00e9", k=draw.randint(0, 20)))
        chosen = draw.sample(WORDS, draw.randint(1, 4))
        watch, at, sent = StopWatch(chosen), 0, ""
        while at < len(text):
            size = draw.randint(0, 4)
            sent += watch.push(text[at : at + size])
            assert cut(text, chosen)[0].startswith(sent)
            at += size
        whole, found = cut(text, chosen)
        assert (sent + watch.finish(), watch.ended) == (whole, found)


def test_only_what_may_become_a_stop_word_waits() -> None:
    watch = StopWatch(["STOP"])
    assert [watch.push(piece) for piece in ("a", "S", "T", "x", "ST", "OP", "b")] == ["a", "", "", "STx", "", "", ""]
    assert watch.finish() == ""


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize(
    ("text", "stops", "left"),
    [
        ("def f(x):\n    return x", ["\n"], "def f(x):"),  # inside a token
        ("the quick brown fox", ["ick b"], "the qu"),  # across tokens
        ("the stop here", ["zebra", "stop"], "the "),
        ("\u4f60\u597d\u4e16\u754c", ["\u4e16"], "\u4f60\u597d"),
        ("the stop", ["never"], "the stop"),
        ("the sto", ["stop"], "the sto"),
        ("the stop", [""], "the stop"),
    ],
)
def test_bls_cuts_on_text(kind: str, text: str, stops: list[str], left: str, tmp_path: Path) -> None:
    served = serve(tmp_path, kind=kind)
    given = words(*stops)
    streamed = served.call("tensorrt_llm_bls", asked(text, **STREAM, **given))
    assert "".join(answers(streamed)) == left
    assert served.stopped == (left != text and text[-3:] != "sto")
    assert answers(served.call("tensorrt_llm_bls", asked(text, **given))) == [left]


def test_a_newline_inside_a_token_is_one() -> None:
    """The premise of the case above: no token is the stop word itself."""
    from .triton_folders import byte_level

    tokenizer = byte_level()
    ids = encode(tokenizer, "def f(x):\n    return x")
    assert encode(tokenizer, "\n")[0] not in ids


def test_rows_have_stop_words_of_their_own_and_the_engine_runs_until_the_last(tmp_path: Path) -> None:
    served = serve(tmp_path)
    given = {"stop_words": np.array([[b"the", b""], [b"stop", b""]], np.object_), "stream": np.ones((2, 1), bool)}
    responses = served.call("tensorrt_llm_bls", asked("hello the stop", "hello the stop", **given))
    assert [row_of(responses, row) for row in range(2)] == ["hello ", "hello the "]
    assert served.stopped == 1
    given["stop_words"] = np.array([[b"the"], [b"never"]], np.object_)
    responses = served.call("tensorrt_llm_bls", asked("hello the stop", "hello the stop", **given))
    assert [row_of(responses, row) for row in range(2)] == ["hello ", "hello the stop"]
    assert served.stopped == 1


def test_each_beam_is_cut(tmp_path: Path) -> None:
    def engine(inputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        ids = inputs["input_ids"][0]
        return [tokens(ids[:2], ids[:3]), tokens(ids, ids[:4])]

    served = serve(tmp_path, engine, kind="byte_level")
    responses = served.call("tensorrt_llm_bls", asked("123456", **STREAM, **words("34")))
    assert [[text.decode() for text in response["text_output"][0]] for response in responses] == [
        ["12", "123"],
        ["12", "12"],
    ]


def test_a_prompt_that_is_repeated_is_not_searched(tmp_path: Path) -> None:
    def engine(inputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        ids = inputs["input_ids"][0]
        return [tokens([*ids, *ids])]

    served = serve(tmp_path, engine, kind="byte_level", exclude_input_in_output=False)
    assert answers(served.call("tensorrt_llm_bls", asked("a stop b", **words("stop")))) == ["a stop ba "]
    more: dict[str, Any] = {"exclude_input_in_output": np.array([[True]])}
    assert answers(served.call("tensorrt_llm_bls", asked("a stop b", **words("stop"), **more))) == ["a "]
