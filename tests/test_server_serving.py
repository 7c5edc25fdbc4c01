"""Generated repositories in a real tritonserver, their engine replaced by one that repeats the prompt."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from enginesmith.build.triton.generate import generate
from enginesmith.build.triton.options import TritonOptions

from .triton_asking import Arrays, ask, events, infer, post, stream, texts_of
from .triton_backend import asked
from .triton_folders import varied_strings, write_engine, write_tokenizer
from .tritonserver import Running, environment, needs_server, serving, with_engine

STREAM = {"stream": np.array([[True]])}
STRINGS = varied_strings(40, seed=3)
MODELS = ("tensorrt_llm_bls", "ensemble")


def repository(folder: Path, **options: bool) -> Path:
    """For the newest release, each Python model in as few processes as show what there is to see."""
    needs_server()
    folders = write_engine(folder / "engine", version="1.2.1"), write_tokenizer(folder / "tokenizer", chat=True)
    few = {"preprocessing_instances": 1, "postprocessing_instances": 1, "bls_instances": 2}
    wanted = TritonOptions(*map(str, folders), str(folder / "repository"), bls=True, **few, **options)
    return with_engine(generate(wanted))


@pytest.fixture(scope="module")
def decoupled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(repository(tmp_path_factory.mktemp("decoupled"), decoupled=True)) as server:
        yield server


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Not decoupled, prompts put through a chat template."""
    with serving(repository(tmp_path_factory.mktemp("chatting"), chat=True)) as server:
        yield server


def words(*texts: str) -> Arrays:
    return {"stop_words": np.array([[text.encode() for text in texts]], np.object_)}


@pytest.mark.parametrize("model", MODELS)
def test_texts_come_back(model: str, decoupled: Running) -> None:
    for text in STRINGS:
        assert texts_of(ask(decoupled.grpc, model, asked(text))) == [text]


def test_texts_stream_back(decoupled: Running) -> None:
    for text in STRINGS:
        pieces = texts_of(ask(decoupled.grpc, "tensorrt_llm_bls", asked(text, **STREAM)))
        assert "".join(pieces) == text
        assert len(pieces) > 1


@pytest.mark.parametrize("model", MODELS)
def test_rows_of_a_batch(model: str, decoupled: Running) -> None:
    responses = ask(decoupled.grpc, model, asked(*STRINGS[:8]))
    rows = {int(response["batch_index"].item()): response for response in responses if isinstance(response, dict)}
    assert [texts_of([rows[row]]) for row in range(8)] == [[text] for text in STRINGS[:8]]
    assert "batch-size must be <= 8" in str(ask(decoupled.grpc, model, asked(*STRINGS[:9]))[0])


def test_the_clients_of_the_repository(decoupled: Running, chatting: Running) -> None:
    for server, said in ((decoupled, "hello \u4f60\u597d"), (chatting, "[user]hello \u4f60\u597d\n[bot]")):
        program = [
            sys.executable,
            server.log.parent / "repository" / "try.py",
            "hello \u4f60\u597d",
            "--url",
            server.grpc,
        ]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60)
        assert done.stdout.count(said) == (2 if server is decoupled else 1), done.stderr


def test_over_http(decoupled: Running) -> None:
    body = {"text_input": STRINGS[0], "max_tokens": 8}
    for model in MODELS:
        status, text = post(decoupled.http, f"{model}/generate", body)
        assert (status, json.loads(text)["text_output"]) == (200, STRINGS[0])
    status, text = post(decoupled.http, "tensorrt_llm_bls/generate_stream", {**body, "stream": True})
    assert (status, "".join(event["text_output"] for event in events(text))) == (200, STRINGS[0])
    status, text = post(decoupled.http, "ensemble/generate", {**body, "max_tokens": 0})
    assert (status, "max_tokens is 0; at least 1 is needed" in text) == (400, True)


BAD = {
    "no tokens": (asked("the", max_tokens=0), "max_tokens is 0"),
    "no text": (asked(b"\xff\xfe"), "QUERY is not UTF-8"),
    "much text": (asked("a" * 70_000), "at most 65536 are taken"),
    "a token": (asked("the", end_id=np.array([[99_999]], np.int32)), "end_id is 99999"),
    "a word": (asked("the", **words("a", *["b" * 60_000] * 2)), "at most 65536 of stop"),
    "bias": (asked("the", embedding_bias_words=np.array([[b"a"]], np.object_)), "one weight for each word"),
    "engine": (asked("the", max_tokens=666), "the engine refuses 666 tokens"),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_request_is_told_why(bad: str, model: str, decoupled: Running) -> None:
    arrays, why = BAD[bad]
    responses = ask(decoupled.grpc, model, arrays)
    assert why in str(responses[-1])


@pytest.mark.parametrize("model", MODELS)
def test_bad_requests_among_good_ones(model: str, decoupled: Running) -> None:
    """All of them under way at once, each answered for itself."""
    errors, answers = list[str](), dict[str, str]()
    with stream(decoupled.grpc) as opened:
        for number, text in enumerate(STRINGS):
            opened.send(model, asked(text), str(number))
            opened.send(model, list(BAD.values())[number % len(BAD)][0], f"bad {number}")
        good, pieces = set(map(str, range(len(STRINGS)))), opened.pieces()
        while good or len(errors) < len(STRINGS):
            name, piece, last = next(pieces)
            good -= {name} if last else set()
            if isinstance(piece, str):
                errors.append(piece)
            elif piece:
                answers[name] = answers.get(name, "") + piece["text_output"].flat[0].decode()
    assert answers == {str(number): text for number, text in enumerate(STRINGS)}
    assert len(errors) == len(STRINGS)
    assert all(any(why in error for error in errors) for _, why in BAD.values())


@pytest.mark.parametrize("model", MODELS)
def test_requests_that_the_server_refuses(model: str, decoupled: Running) -> None:
    good = asked("the")
    for changes in (
        {"top_p": np.array([[1]], np.int32)},
        {"max_tokens": np.array([9], np.int32)},
        {"x": good["max_tokens"]},
    ):
        arrays = good | changes
        assert isinstance(ask(decoupled.grpc, model, arrays)[-1], str)
    assert isinstance(ask(decoupled.grpc, model, {"text_input": good["text_input"]})[-1], str)
    assert texts_of(ask(decoupled.grpc, model, good)) == ["the"]


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def test_a_client_that_leaves_stops_the_engine(decoupled: Running) -> None:
    """Both instances of BLS were busy with it and serve others then."""
    before, slow = decoupled.said().count("was stopped"), {"top_k": np.array([[100]], np.int32)}
    for _ in range(2):
        with stream(decoupled.grpc, cancel=True) as opened:
            opened.send("tensorrt_llm_bls", asked("hello the stop " * 50, **STREAM, **slow))
            pieces = opened.pieces()
            assert [next(pieces)[2] for _ in range(3)] == [False] * 3
    assert wait_for(lambda: decoupled.said().count("was stopped") == before + 2)
    begin = time.monotonic()
    assert texts_of(ask(decoupled.grpc, "tensorrt_llm_bls", asked("the"))) == ["the"]
    assert time.monotonic() - begin < 5


def test_a_stop_word_stops_the_engine(decoupled: Running) -> None:
    before, slow = decoupled.said().count("was stopped"), {"top_k": np.array([[20]], np.int32)}
    arrays = asked("hello the stop " + "the " * 100, **STREAM, **slow, **words("sto"))
    assert "".join(texts_of(ask(decoupled.grpc, "tensorrt_llm_bls", arrays))) == "hello the "
    assert wait_for(lambda: decoupled.said().count("was stopped") == before + 1)


@pytest.mark.parametrize("model", MODELS)
def test_one_response_to_a_request(model: str, chatting: Running) -> None:
    for text in STRINGS[:10]:
        answer = infer(chatting.grpc, model, asked(text))
        assert answer["text_output"].flat[0].decode() == f"[user]{text}\n[bot]"
    with pytest.raises(InferenceServerException, match="the engine refuses 666 tokens"):
        infer(chatting.grpc, model, asked("the", max_tokens=666))
    with pytest.raises(InferenceServerException, match="decoupled"):
        infer(chatting.grpc, model, asked("the", **STREAM))
    with pytest.raises(InferenceServerException, match="decoupled"):
        infer(chatting.grpc, model, asked("the", "the"))


def test_a_chat_with_tools(chatting: Running) -> None:
    chat = {
        "messages": [{"role": "system", "content": "be \u00e9"}, {"role": "user", "content": "hello"}],
        "tools": [{}],
    }
    status, text = post(chatting.http, "ensemble/generate", {"text_input": json.dumps(chat), "max_tokens": 8})
    assert (status, json.loads(text)["text_output"]) == (200, "[system]be \u00e9\n[user]hello\n[bot]")
    _, text = post(chatting.http, "ensemble/generate", {"text_input": '{"messages": []}', "max_tokens": 8})
    assert "messages" in text
    assert "is empty" in text


def processes() -> dict[int, str]:
    """Each process's command."""
    command = ["ps", "-ww", "-eo", "pid,args", "--no-headers"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {int(number): words for number, words in (line.split(maxsplit=1) for line in lines)}


def test_an_instance_is_small(decoupled: Running) -> None:
    folder = str(decoupled.log.parent)
    stubs = [pid for pid, words in processes().items() if "triton_python_backend_stub" in words and folder in words]
    assert len(stubs) == 5
    for stub in stubs:
        [resident] = re.findall(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{stub}/status").read_text(), re.MULTILINE)
        assert int(resident) < 150 * 1024


def test_packages_of_the_environment_work_with_the_servers_numpy() -> None:
    needs_server()
    program = "import numpy, torch, transformers; print(numpy.__version__[:2], torch.from_numpy(numpy.ones(3)).numpy())"
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert done.stdout == "1. [1. 1. 1.]\n", done.stderr


def test_stopped_and_started_again(tmp_path: Path) -> None:
    folder = repository(tmp_path, decoupled=True)
    for _ in range(2):
        with serving(folder) as server:
            assert texts_of(ask(server.grpc, "tensorrt_llm_bls", asked("the"))) == ["the"]
        with pytest.raises(URLError):
            post(server.http, "ensemble/generate", {})
    assert not [words for words in processes().values() if str(tmp_path) in words]
    assert "Exit timeout" not in server.said()


def test_a_model_that_cannot_start_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = repository(tmp_path, decoupled=True)
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(RuntimeError, match="ended with 1"), serving(folder):
        pass
    assert "failed to load all models" in capsys.readouterr().out
