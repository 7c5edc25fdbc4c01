"""A checkpoint behind a real tritonserver, in its engine's place: it answers as ``generate`` does, whoever asks."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from enginesmith import GenerateOptions
from enginesmith import generate as said_by
from enginesmith.build.triton.check import examine
from enginesmith.build.triton.generate import generate
from enginesmith.build.triton.models.loading import load_tokenizer
from enginesmith.build.triton.options import TritonOptions
from enginesmith.convert.generate.text import Written
from enginesmith.convert.tokens.tokenization import decode

from .conftest import write_model
from .family_models import converted
from .triton_asking import Arrays, ask, infer, stream, texts_of
from .triton_backend import asked
from .triton_folders import varied_strings, write_tokenizer
from .tritonserver import Running, needs_server, serving

TOKENS, ENDS = 8, 2
STREAM = {"stream": np.array([[True]])}
PROMPTS = varied_strings(200, seed=11)
BLS, ENSEMBLE = "tensorrt_llm_bls", "ensemble"


class Preview:
    """A tiny checkpoint and its tokenizer, and the repository that serves it."""

    def __init__(self, folder: Path, **options: Any):
        needs_server()
        self.model = write_model(folder / "hf", vocab_size=400, max_position_embeddings=512)
        write_tokenizer(self.model)
        quant = {"quant": "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "kv_cache": "INT8"}
        converted(self.model, folder / "checkpoint", **quant)
        self.checkpoint = folder / "checkpoint"
        few = {"preprocessing_instances": 1, "postprocessing_instances": 1, "bls_instances": 4}
        wanted = TritonOptions(
            str(self.checkpoint), str(self.model), str(folder / "repository"), True, bls=True, **few, **options
        )
        self.repository = generate(wanted)

    def says(self, prompts: list[str], tokens: int = TOKENS, **options: Any) -> list[Written]:
        """What ``generate`` answers."""
        return said_by(self.checkpoint, prompts, GenerateOptions(max_tokens=tokens, **options), self.model).answers


@pytest.fixture(scope="module")
def preview(tmp_path_factory: pytest.TempPathFactory) -> Preview:
    return Preview(tmp_path_factory.mktemp("preview"), decoupled=True)


@pytest.fixture(scope="module")
def server(preview: Preview) -> Iterator[Running]:
    with serving(preview.repository) as running:
        yield running


@pytest.fixture(scope="module")
def written(preview: Preview) -> list[Written]:
    """What ``generate`` answers to all prompts."""
    return preview.says(PROMPTS)


@pytest.fixture(scope="module")
def texts(preview: Preview, written: list[Written]) -> list[str]:
    """The same, decoded at once: where bytes make no character, a stream keeps the ones before them that did."""
    tokenizer = load_tokenizer(str(preview.model))
    return [decode(tokenizer, answer.ids) for answer in written]


def test_a_repository_of_the_same_tensors(preview: Preview) -> None:
    assert examine(preview.repository).problems == []


@pytest.mark.parametrize("model", [BLS, ENSEMBLE])
def test_alone(model: str, server: Running, texts: list[str]) -> None:
    for prompt, text in zip(PROMPTS, texts, strict=True):
        assert texts_of(ask(server.grpc, model, asked(prompt, max_tokens=TOKENS))) == [text]


def test_streams_in_a_crowd(server: Running, written: list[Written]) -> None:
    """All of them at once on one connection, 64 in one pass of the model."""
    pieces: dict[str, list[Any]] = {str(number): [] for number in range(len(PROMPTS))}
    waiting = set(pieces)
    with stream(server.grpc) as opened:
        for number, prompt in enumerate(PROMPTS):
            opened.send(BLS, asked(prompt, max_tokens=TOKENS, **STREAM), str(number))
        for name, response, last in opened.pieces():
            pieces[name] += [response] if response else []
            waiting -= {name} if last else set()
            if not waiting:
                break
    streamed = ["".join(texts_of(pieces[str(number)])) for number in range(len(PROMPTS))]
    assert streamed == [answer.text for answer in written]


def direct(ids: list[int], tokens: int = TOKENS, **more: Any) -> Arrays:
    """A request to the model that stands in for the engine; numbers are one a row."""
    plain = {"input_lengths": len(ids), "request_output_len": tokens} | more
    kinds = {bool: np.bool_, int: np.int32, float: np.float32}
    made = {
        name: np.array([[value]], kinds[type(value)]) if type(value) in kinds else value
        for name, value in plain.items()
    }
    return {"input_ids": np.array([ids], np.int32)} | made


IDS = [5, 77, 130, 9, 31]


def tokens_of(responses: list[Arrays | str]) -> list[int]:
    assert all(isinstance(response, dict) for response in responses), responses
    return [int(i) for one in responses if isinstance(one, dict) for i in one["output_ids"].reshape(-1)]


def test_what_the_engine_tells_besides(server: Running) -> None:
    wanted = {"return_log_probs": True, "return_context_logits": True, "return_generation_logits": True}
    counts = {"return_num_input_tokens": True, "return_num_output_tokens": True, "return_perf_metrics": True}
    (told,) = ask(server.grpc, "tensorrt_llm", direct(IDS, **wanted, **counts))
    assert isinstance(told, dict)
    ids = told["output_ids"][0, 0]
    logits = told["generation_logits"][0, 0].astype(np.float64)
    assert logits.shape == (TOKENS, 400)
    assert told["context_logits"].shape == (1, len(IDS), 400)
    assert logits[0] == pytest.approx(told["context_logits"][0, -1].astype(np.float64), abs=1e-5)
    shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert told["output_log_probs"][0, 0] == pytest.approx(shares[range(TOKENS), ids], abs=1e-4)
    assert told["cum_log_probs"].item() == pytest.approx(told["output_log_probs"].sum(), abs=1e-4)
    assert ids.tolist() == logits.argmax(1).tolist()
    assert (told["num_input_tokens"].item(), told["num_output_tokens"].item()) == (len(IDS), TOKENS)
    assert told["sequence_length"].item() == TOKENS
    assert told["arrival_time_ns"].item() <= told["first_token_time_ns"].item() <= told["last_token_time_ns"].item()


def test_the_prompt_in_front(server: Running) -> None:
    plain = tokens_of(ask(server.grpc, "tensorrt_llm", direct(IDS)))
    whole = tokens_of(ask(server.grpc, "tensorrt_llm", direct(IDS, exclude_input_in_output=False)))
    assert whole == IDS + plain


def test_ends_words_and_bias(server: Running) -> None:
    plain = tokens_of(ask(server.grpc, "tensorrt_llm", direct(IDS)))
    third = plain.index(plain[2])
    assert tokens_of(ask(server.grpc, "tensorrt_llm", direct(IDS, end_id=plain[2]))) == plain[:third]
    words = np.array([[[plain[1], plain[2]], [2, -1]]], np.int32)
    stopped = tokens_of(ask(server.grpc, "tensorrt_llm", direct(IDS, stop_words_list=words)))
    assert stopped == plain[: len(stopped)]
    assert stopped[-2:] == plain[1:3]
    others = tokens_of(ask(server.grpc, "tensorrt_llm", direct(IDS, bad_words_list=words)))
    assert plain[1:3] not in [others[at : at + 2] for at in range(TOKENS)]
    bias = np.zeros((1, 400), np.float32)
    bias[0, 123] = 1e4
    assert tokens_of(ask(server.grpc, "tensorrt_llm", direct(IDS, embedding_bias=bias))) == [123] * TOKENS
    late = tokens_of(ask(server.grpc, "tensorrt_llm", direct(IDS, end_id=plain[0], min_tokens=3)))
    assert len(late) >= 3


def test_sampling_is_that_of_generate(preview: Preview, server: Running) -> None:
    def numbers(**given: float) -> Arrays:
        kinds = {"top_k": np.int32, "seed": np.uint64}
        return {name: np.array([[value]], kinds.get(name, np.float32)) for name, value in given.items()}

    for how in ({"top_k": 20, "temperature": 0.7, "seed": 3}, {"top_p": 0.8, "seed": 4, "repetition_penalty": 1.5}):
        (answer,) = preview.says([PROMPTS[0]], tokens=24, **how)
        told = ask(server.grpc, BLS, asked(PROMPTS[0], max_tokens=24, **STREAM, **numbers(**how)))
        assert "".join(texts_of(told)) == answer.text
    (greedy,) = preview.says([PROMPTS[0]], tokens=24)
    told = ask(server.grpc, BLS, asked(PROMPTS[0], max_tokens=24, **STREAM, **numbers(temperature=2.0)))
    assert "".join(texts_of(told)) == greedy.text


def test_several_sequences(server: Running) -> None:
    several = ask(server.grpc, "tensorrt_llm", direct(IDS, num_return_sequences=3, runtime_top_k=50))
    assert sorted(int(one["sequence_index"].item()) for one in several if isinstance(one, dict)) == [0, 1, 2]
    assert len({tuple(one["output_ids"].reshape(-1).tolist()) for one in several if isinstance(one, dict)}) == 3


BAD = {
    "beam_width: a preview knows 1": {"beam_width": 2},
    "lora_task_id: only an engine has that": {"lora_task_id": np.array([[1]], np.uint64)},
    "Prompt length": {"input_ids": np.ones((1, 600), np.int32), "input_lengths": 600},
    "input_lengths is 9": {"input_lengths": 9},
    "the vocabulary is 0 to 399": {"input_ids": np.full((1, 5), 400, np.int32)},
    "request_output_len is 0": {"request_output_len": 0},
    "top_p is": {"runtime_top_p": 1.5},
    "num_return_sequences is 0": {"num_return_sequences": 0},
    "num_return_sequences is 1000000": {"num_return_sequences": 10**6},
    "temperature is": {"temperature": -1.0},
    "embedding_bias has": {"embedding_bias": np.zeros((1, 7), np.float32)},
    "stop_words_list": {"stop_words_list": np.array([[[1, 2], [5, -1]]], np.int32)},
}


def test_bad_requests_among_good_ones(server: Running) -> None:
    plain = tokens_of(ask(server.grpc, "tensorrt_llm", direct(IDS)))
    answers: dict[str, Any] = {}
    with stream(server.grpc) as opened:
        for line, given in BAD.items():
            opened.send("tensorrt_llm", direct(IDS, **given), line)
            opened.send("tensorrt_llm", direct(IDS), f"good {line}")
        open_requests = 2 * len(BAD)
        refused = []
        for name, response, last in opened.pieces():
            if isinstance(response, str):
                refused.append(response)
            elif response:
                answers[name] = response
            open_requests -= last
            if not open_requests:
                break
    assert len(refused) == len(BAD)
    for line in BAD:
        assert any(line in error for error in refused), (line, refused)
        assert tokens_of([answers[f"good {line}"]]) == plain


def test_cancelled_and_stopped(server: Running) -> None:
    """A client that leaves, and a request with stop, give their place back at once."""
    long = direct(IDS, tokens=400, streaming=True)
    with stream(server.grpc, cancel=True) as opened:
        opened.send("tensorrt_llm", long, "left")
        next(opened.pieces())
    with stream(server.grpc) as opened:
        opened.send("tensorrt_llm", long, "stopped")
        pieces, seen, ended = opened.pieces(), 0, 0
        next(pieces)
        opened.send("tensorrt_llm", direct(IDS, stop=True), "stopped")
        for _, response, last in pieces:
            seen, ended = seen + bool(response), ended + last
            if ended == 2:
                break
    assert seen < 300
    started = time.monotonic()
    tokens_of(ask(server.grpc, "tensorrt_llm", direct(IDS)))
    assert time.monotonic() - started < 10


def test_memory_after_many_requests(preview: Preview, server: Running) -> None:
    """A thousand requests leave nothing behind, once an allocator has what it keeps."""
    (pid,) = [pid for pid in processes() if f"{preview.repository}/tensorrt_llm/" in command(pid)]

    def many(count: int) -> None:
        with stream(server.grpc) as opened:
            for number in range(count):
                opened.send("tensorrt_llm", direct(IDS, tokens=2), str(number))
            left = count
            for _, response, last in opened.pieces():
                assert not isinstance(response, str), response
                left -= last
                if not left:
                    break

    many(1000)
    sizes = [resident(pid)]
    for _ in range(4):
        many(1000)
        sizes.append(resident(pid))
    assert min(after - before for before, after in pairwise(sizes)) < 2**20


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def resident(pid: int) -> int:
    """Bytes."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_not_decoupled(tmp_path: Path) -> None:
    """One response to a request; requests of several clients are still in flight together."""
    preview = Preview(tmp_path)
    (answer,) = preview.says([PROMPTS[1]])
    text = decode(load_tokenizer(str(preview.model)), answer.ids)
    with serving(preview.repository) as server:
        told = infer(server.grpc, ENSEMBLE, asked(PROMPTS[1], max_tokens=TOKENS))
        assert texts_of([told]) == [text]
        with pytest.raises(Exception, match="streaming needs a decoupled repository"):
            infer(server.grpc, ENSEMBLE, asked(PROMPTS[1], max_tokens=TOKENS, **STREAM))


def test_a_preview_of_what_is_no_checkpoint(tmp_path: Path) -> None:
    model = write_model(tmp_path / "hf", vocab_size=400)
    write_tokenizer(model)
    with pytest.raises(Exception, match="is a Hugging Face folder"):
        generate(TritonOptions(str(model), str(model), str(tmp_path / "repository"), True))
    assert not (tmp_path / "repository").exists()
    assert json.loads((model / "config.json").read_text())["vocab_size"] == 400


def test_a_model_that_is_killed(tmp_path: Path) -> None:
    """Whoever comes is told, by the server or by its end, and one that is started again answers as before."""
    preview, said = Preview(tmp_path), []
    for _ in range(2):
        with serving(preview.repository) as server:
            said.append(tokens_of([infer(server.grpc, "tensorrt_llm", direct(IDS))]))
            (pid,) = [pid for pid in processes() if f"{preview.repository}/tensorrt_llm/" in command(pid)]
            os.kill(pid, signal.SIGKILL)
            time.sleep(1)
            with pytest.raises(InferenceServerException, match=r"not healthy|UNAVAILABLE"):
                infer(server.grpc, "tensorrt_llm", direct(IDS))
    assert said[0] == said[1]
