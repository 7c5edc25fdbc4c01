"""A request must not take its neighbours with it, whatever its text does to a tokenizer, nor hold an instance."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .test_triton_generate import config_of, made, parameters
from .test_triton_models import STREAM, answers, error_of, lengths, serve
from .triton_backend import asked, texts


class Panic(BaseException):
    """As the tokenizers library raises one when its Rust code panics."""


class Panicking:
    """A tokenizer that panics at some text, encoding or decoding."""

    def __init__(self, tokenizer: Any, decoding: bool = False):
        self.tokenizer, self.decoding = tokenizer, decoding

    def __call__(self, text: str, **options: Any) -> Any:
        if "panic" in text:
            raise Panic("Onig: retry-limit-in-match over " + "x" * 9999)
        return self.tokenizer(text, **options)

    def decode(self, ids: Any, **options: Any) -> Any:
        text = self.tokenizer.decode(ids, **options)
        if self.decoding and "zz" in text:
            raise Panic("decoding")
        return text

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def test_a_panic_while_tokenizing_fails_alone(tmp_path: Path) -> None:
    served = serve(tmp_path)
    model = served.models["preprocessing"]
    model.tokenizer = Panicking(model.tokenizer)
    good, bad = ({"QUERY": texts(text), "REQUEST_OUTPUT_LEN": lengths(1)} for text in ("the", "panic"))
    word = {**good, "STOP_WORDS_DICT": texts("panic")}
    first, failed, second, third = served.calls("preprocessing", [good, bad, good, word])
    assert first[0]["INPUT_ID"].tolist() == second[0]["INPUT_ID"].tolist()
    for responses in (failed, third):
        assert error_of(responses).startswith("preprocessing failed: Panic: Onig")
        assert len(error_of(responses)) <= 400


@pytest.mark.parametrize("stream", [{}, STREAM])
def test_a_panic_while_detokenizing_fails_alone(stream: dict[str, np.ndarray], tmp_path: Path) -> None:
    served = serve(tmp_path)
    for name in ("postprocessing", "tensorrt_llm_bls"):
        served.models[name].tokenizer = Panicking(served.models[name].tokenizer, decoding=True)
    requests = [asked("hello", **stream), asked("a zz b", **stream), asked("the", **stream)]
    first, failed, last = served.calls("tensorrt_llm_bls", requests)  # which asserts that every sender is closed
    assert ("".join(answers(first)), "".join(answers(last))) == ("hello", "the")
    assert "tensorrt_llm_bls failed: Panic" in error_of(failed)
    assert served.stopped == bool(stream)
    if not stream:
        assert "postprocessing failed: Panic" in error_of(served.call("ensemble", asked("a zz b")))


def test_a_sender_is_closed_though_the_client_has_gone(tmp_path: Path) -> None:
    served = serve(tmp_path)
    closed = []

    class Sender:
        def send(self, response: Any = None, flags: int = 0) -> None:
            if response is not None:
                raise RuntimeError("no one is there")
            closed.append(flags)

        def is_cancelled(self) -> bool:
            return False

    class Request:
        def get_response_sender(self) -> Sender:
            return Sender()

    served.models["tensorrt_llm_bls"].execute([Request()])
    assert closed == [1]


def many(count: int, word: bytes = b"the") -> np.ndarray:
    return np.array([[word] * count], np.object_)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"QUERY": texts("a" * 2**16 + "b")}, "text_input has 65537 bytes; at most 65536 are taken (max_prompt_bytes"),
        ({"DECODER_QUERY": texts(" " * 11_000_000)}, "decoder_text_input has 11000000 bytes"),
        ({"STOP_WORDS_DICT": many(1025)}, "stop_words: 1025 words; at most 1024 of stop, bad and bias words"),
        ({"STOP_WORDS_DICT": many(10**6)}, "stop_words: 1000000 words"),
        ({"STOP_WORDS_DICT": many(600), "BAD_WORDS_DICT": many(600)}, "words: 1200 words; at most 1024"),
        ({"BAD_WORDS_DICT": many(2, b"a" * 40_000)}, "bad_words: 80000 word_bytes; at most 65536"),
        (
            {"EMBEDDING_BIAS_WORDS": many(2000), "EMBEDDING_BIAS_WEIGHTS": np.ones((1, 2000), np.float32)},
            "embedding_bias_words: 2000 words",
        ),
    ],
)
def test_requests_that_ask_for_too_much(change: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    served = serve(tmp_path)
    good = {"QUERY": texts("the"), "REQUEST_OUTPUT_LEN": lengths(1)}
    begin = time.monotonic()
    first, refused, second = served.calls("preprocessing", [good, {**good, **change}, good])
    assert words in error_of(refused)
    assert first[0]["INPUT_ID"].size == second[0]["INPUT_ID"].size > 0
    assert time.monotonic() - begin < 20


def test_as_much_as_is_allowed_is_tokenized(tmp_path: Path) -> None:
    served = serve(tmp_path)
    [answer] = served.call(
        "preprocessing",
        {"QUERY": texts(" " * 2**16), "REQUEST_OUTPUT_LEN": lengths(1), "STOP_WORDS_DICT": many(1024)},
    )
    assert answer["INPUT_ID"].size


def test_a_template_cannot_make_much_of_little(tmp_path: Path) -> None:
    served = serve(tmp_path, chat=True)
    model = served.models["preprocessing"]
    model.chat, model.tokenizer.chat_template = True, "{{ messages[0].content * 90000 }}"
    assert "text_input has 90000 bytes" in error_of(served.call("ensemble", asked("a")))


def test_a_request_that_takes_too_long(tmp_path: Path) -> None:
    served = serve(tmp_path)
    served.models["preprocessing"].limits["max_seconds"] = 0
    assert "not tokenized within 0 s" in error_of(served.call("ensemble", asked("the")))


def test_the_limits_are_written_out(tmp_path: Path) -> None:
    sizes = dict.fromkeys(("max_input_len", "max_seq_len", "max_num_tokens"), 100_000)
    stated = parameters(config_of(made(tmp_path, sizes), "preprocessing"))
    assert stated["max_prompt_bytes"] == "1600000"
    assert (stated["max_words"], stated["max_word_bytes"], stated["max_seconds"]) == ("1024", "65536", "30")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"END_ID": np.array([[-5]], np.int32)}, "end_id is -5; an id, or -1 for none"),
        ({"PAD_ID": np.array([[-(2**31)]], np.int32)}, "pad_id is -2147483648; an id, or -1 for none"),
        *(
            (
                {"EMBEDDING_BIAS_WORDS": many(2), "EMBEDDING_BIAS_WEIGHTS": np.array([weights], np.float32)},
                "embedding_bias_weights are, or add up to, no number",
            )
            for weights in ([np.nan, 1], [np.inf, -np.inf])
        ),
    ],
)
def test_numbers_that_no_engine_takes(change: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    request = {"QUERY": texts("the"), "REQUEST_OUTPUT_LEN": lengths(1), **change}
    assert words in error_of(serve(tmp_path).call("preprocessing", request))
