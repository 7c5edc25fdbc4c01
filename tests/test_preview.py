"""The model that stands in for an engine, in this process: what a real server cannot be made to show at will."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from enginesmith.build.triton.generate import generate
from enginesmith.build.triton.options import TritonOptions

from .conftest import write_model
from .family_models import converted
from .triton_backend import TRITONSERVER_RESPONSE_COMPLETE_FINAL, InferenceResponse, Tensor, TritonModelException, load
from .triton_folders import write_tokenizer

IDS = [5, 77, 130, 9, 31]
SECONDS = 30


class Sender:
    """A client's end of a request, with Triton's rules of what may be sent."""

    def __init__(self, decoupled: bool):
        self.decoupled, self.sent = decoupled, list[InferenceResponse]()
        self.cancelled, self.first, self.ended = False, threading.Event(), threading.Event()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        final = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if self.ended.is_set():
            raise TritonModelException("nothing may be sent after the final flag")
        if not self.decoupled and (response is None or not final):
            raise TritonModelException("one response, and it is the final one")
        self.sent += [] if response is None else [response]
        self.first.set()
        if final:
            self.ended.set()

    def is_cancelled(self) -> bool:
        return self.cancelled

    @property
    def tokens(self) -> list[int]:
        assert self.ended.wait(SECONDS), "the request hangs"
        arrays = [{t.name(): t.as_numpy() for t in response.output_tensors()} for response in self.sent]
        return [int(i) for one in arrays for i in one["output_ids"].reshape(-1)]

    @property
    def error(self) -> str:
        assert self.ended.wait(SECONDS), "the request hangs"
        return self.sent[-1].error().message() if self.sent and self.sent[-1].has_error() else ""


class Asked:
    """A request, and the client's end of it."""

    def __init__(self, decoupled: bool, name: str = "", **given: Any):
        plain = {"input_ids": np.array([IDS], np.int32), "input_lengths": len(IDS), "request_output_len": 6} | given
        kinds = {bool: np.bool_, int: np.int32, float: np.float32}
        made = {k: np.array([v], kinds[type(v)]) if type(v) in kinds else v for k, v in plain.items()}
        self.tensors, self.name, self.sender = {k: Tensor(k, v) for k, v in made.items()}, name, Sender(decoupled)

    def request_id(self) -> str:
        return self.name

    def get_response_sender(self) -> Sender:
        return self.sender


Ask = Callable[..., Sender]


def model_of(folder: Path, decoupled: bool) -> Any:
    model = write_model(folder / "hf", vocab_size=400, max_position_embeddings=512)
    write_tokenizer(model)
    converted(model, folder / "checkpoint", quant="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", kv_cache="INT8")
    paths = (str(folder / name) for name in ("checkpoint", "hf", "repository"))
    repository = generate(TritonOptions(*paths, True, decoupled=decoupled, max_batch_size=4))
    config = text_format.Parse((repository / "tensorrt_llm/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    return load(repository / "tensorrt_llm" / "1", config)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = model_of(tmp_path_factory.mktemp("preview"), True)
    yield made
    made.finalize()


@pytest.fixture
def ask(model: Any, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """ask(name, tensor=value) -> the client's end."""
    return asker(model, True, monkeypatch)


def asker(model: Any, decoupled: bool, monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.setattr(backend(model), "get_input_tensor_by_name", lambda request, name: request.tensors.get(name))

    def ask(name: str = "", **given: Any) -> Sender:
        request = Asked(decoupled, name, **given)
        model.execute([request])
        return request.sender

    return ask


def backend(model: Any) -> Any:
    """The module that the model calls Triton by."""
    return type(model).execute.__globals__["pb_utils"]


def settled(model: Any) -> None:
    """Wait until nothing is under way."""
    until = time.monotonic() + SECONDS
    while (model.aboard or model.flight.busy) and time.monotonic() < until:
        time.sleep(0.01)
    assert not model.aboard
    assert not model.flight.busy


def test_a_client_that_leaves_gives_its_place_back(model: Any, ask: Ask) -> None:
    long = ask(request_output_len=500, streaming=True)
    assert long.first.wait(SECONDS)
    long.cancelled = True
    assert not long.error
    settled(model)
    assert len(long.sent) < 400


def test_stop_ends_the_requests_of_its_name_alone(model: Any, ask: Ask) -> None:
    one, other = (ask(name, request_output_len=120, streaming=True) for name in ("one", "other"))
    assert one.first.wait(SECONDS)
    ask("one", stop=True)
    assert len(one.tokens) < 120
    assert len(other.tokens) == 120
    settled(model)


def test_stop_sends_no_ended_row_again(model: Any, ask: Ask) -> None:
    rows = np.array([IDS, IDS], np.int32)
    lengths, most = np.array([5, 5], np.int32), np.array([2, 500], np.int32)
    sender = ask("rows", input_ids=rows, input_lengths=lengths, request_output_len=most)
    assert sender.first.wait(SECONDS)
    ask("rows", stop=True)
    assert sender.ended.wait(SECONDS)
    indices = [
        int(t.as_numpy().item()) for one in sender.sent for t in one.output_tensors() if t.name() == "batch_index"
    ]
    assert sorted(indices) == [0, 1]


def test_stop_before_anything_was_computed(model: Any, ask: Ask) -> None:
    """With what is told of the prompt still empty."""
    blockers = [ask(request_output_len=60) for _ in range(4)]
    waiting = ask("waiting", return_context_logits=True)
    ask("waiting", stop=True)
    assert waiting.tokens == []
    assert all(len(blocker.tokens) == 60 for blocker in blockers)


@pytest.mark.parametrize(
    "given",
    [
        {"embedding_bias": np.full((1, 400), -np.inf, np.float32), "runtime_top_k": 5},
        {"embedding_bias": np.full((1, 400), np.nan, np.float32)},
        {"presence_penalty": float("nan"), "runtime_top_k": 5},
        {"repetition_penalty": 1e-40, "runtime_top_k": 5},
        {"bad_words_list": np.array([[[100000], [1]]], np.int32)},
        {"end_id": 50000, "min_tokens": 3},
        {"num_return_sequences": 0},
        {"num_return_sequences": 10**6},
        {"runtime_top_p": float("nan")},
    ],
)
def test_one_bad_request_ends_alone(given: dict[str, Any], ask: Ask) -> None:
    victim = ask(request_output_len=40, streaming=True)
    assert victim.first.wait(SECONDS)
    assert ask(**given).error
    assert len(victim.tokens) == 40


def test_everything_forbidden(ask: Ask) -> None:
    words = np.array([[list(range(400)), list(range(1, 401))]], np.int32)
    assert "no token can come next" in ask(bad_words_list=words, runtime_top_k=3).error


def test_a_pass_that_fails_ends_what_is_in_it(model: Any, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next request is answered as before."""
    before = ask().tokens
    step = model.flight.step
    monkeypatch.setattr(model.flight, "step", lambda: 1 / 0)
    assert "ZeroDivisionError" in ask().error
    monkeypatch.setattr(model.flight, "step", step)
    assert ask().tokens == before
    settled(model)


def test_what_requests_say_of_sampling(model: Any) -> None:
    """Under the names of all releases."""
    parse = type(model).request.__globals__["sampling"]

    def said(**how: float) -> Any:
        return parse({name: np.array([value]) for name, value in how.items()}, 0)

    made = said(repetition_penalty=1.5, presence_penalty=0.25, frequency_penalty=0.5)
    assert (made.repetition, made.presence, made.frequency) == (1.5, 0.25, 0.5)
    assert said(min_length=3) == said(min_tokens=3) == replace(said(), min_tokens=3)
    assert said(random_seed=7) == said(seed=7) == replace(said(), seed=7)
    assert said().top_k == said(temperature=0.0, runtime_top_p=0.5).top_k == 1
    assert said(runtime_top_p=0.5) == replace(said(), top_k=0, top_p=0.5)


def test_answers_end_where_the_engine_would(model: Any, ask: Ask) -> None:
    assert len(ask(request_output_len=10_000).tokens) == model.max_tokens - len(IDS)


def test_times_in_their_order(ask: Ask) -> None:
    sender = ask(return_perf_metrics=True)
    assert sender.tokens
    told = {tensor.name(): tensor.as_numpy() for tensor in sender.sent[-1].output_tensors()}
    times = {name: int(value.item()) for name, value in told.items() if name.endswith("_ns")}
    assert 0 < times["arrival_time_ns"] <= times["first_scheduled_time_ns"] <= times["first_token_time_ns"]
    assert times["first_token_time_ns"] <= times["last_token_time_ns"]


def test_not_decoupled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One response each: also to who is stopped, asks for several, or has gone; the model goes on."""
    model = model_of(tmp_path, False)
    ask = asker(model, False, monkeypatch)
    plain = ask().tokens
    assert "decoupled" in ask(num_return_sequences=2, runtime_top_k=3).error
    assert "decoupled" in ask(streaming=True).error
    long = ask("long", request_output_len=500)
    assert ask("long", stop=True).ended.wait(SECONDS)
    assert long.ended.wait(SECONDS)
    left = ask(request_output_len=500)
    left.cancelled = True
    assert left.error
    assert ask().tokens == plain
    model.finalize()
