"""Triton's Python backend runs this as tensorrt_llm/1/model.py of a preview: the checkpoint itself, executed.

It stands in for the engine: the same tensors, in-flight batching, streaming, cancellation. Requests join the pass that
comes next and are answered token by token, or whole. What only an engine has is refused, one request at a time.

Parameters: gpt_model_path, the checkpoint; max_input_len and max_seq_len in tokens; max_batch_size answers in one pass;
exclude_input_in_output (true or false).
"""

from __future__ import annotations

import json
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from engine_inputs import RequestError, flag, number, refuse_engine_only, sampling, words

from enginesmith.convert.errors import InputError
from enginesmith.convert.generate.flight import BEYOND, Answer, Flight, Request, check
from enginesmith.convert.generate.job import BEYOND_DTYPE
from enginesmith.convert.generate.network import Network
from enginesmith.convert.prove.proven import opened

LONGEST_MESSAGE = 400  # characters of an error


@dataclass(eq=False)
class Sent:
    """A request of a client: its answers, one for every row and sequence, and what of them has gone out.

    Attributes:
        answers: with their row and sequence.
        out: tokens of each that have been sent.
        times: of arrival, first pass, first token and last token, nanoseconds.
    """

    name: str
    sender: Any
    wanted: dict[str, bool]
    answers: list[tuple[Answer, int, int]] = field(default_factory=list)
    out: dict[Answer, int] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return all(answer.reason is not None for answer, _, _ in self.answers)


class TritonPythonModel:
    """A checkpoint in memory, and a thread that takes every request in flight one token further at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        self.config = json.loads(args["model_config"])
        values = {name: value["string_value"] for name, value in self.config["parameters"].items()}
        self.max_input, self.max_tokens = int(values["max_input_len"]), int(values["max_seq_len"])
        self.exclude_input = values["exclude_input_in_output"].lower() == "true"
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(self.config)
        self.types = {one["name"]: pb_utils.triton_string_to_numpy(one["data_type"]) for one in self.config["output"]}
        self.inputs = [one["name"] for one in self.config["input"]]
        network = Network(opened(values["gpt_model_path"]), torch.device("cpu"), self.max_tokens)
        self.flight, self.vocab_size = Flight(network, int(values["max_batch_size"])), network.model.vocab_size
        self.inbox: queue.SimpleQueue[tuple[Any, Any] | None] = queue.SimpleQueue()
        self.aboard: list[Sent] = []
        self.thread = threading.Thread(target=self.fly, daemon=True)
        self.thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Take requests in; the thread answers them, whether the repository is decoupled or not."""
        for request in requests:
            self.inbox.put((request, request.get_response_sender()))

    def finalize(self) -> None:
        self.inbox.put(None)
        self.thread.join()

    def fly(self) -> None:
        """One pass after the other for as long as there are requests; then wait for the next."""
        while self.board():
            try:
                self.go_on()
            except Exception as error:  # a pass is everybody's; nobody may wait for ever
                for sent in list(self.aboard):
                    self.fail(sent, f"tensorrt_llm failed: {error!r}")

    def go_on(self) -> None:
        """One pass, and what it brings to everybody."""
        self.drop_cancelled()
        if self.flight.busy:
            advanced = set(self.flight.step())
            for sent in list(self.aboard):
                self.send(sent, advanced)

    def board(self) -> bool:
        """Take in what has come; False at the end."""
        while not self.inbox.empty() or not self.flight.busy:
            came = self.inbox.get()
            if came is None:
                return False
            self.take(*came)
        return True

    def take(self, request: Any, sender: Any) -> None:
        """A request joins, is refused, or stops another."""
        try:
            tensors = self.read(request)
            if flag(tensors, "stop"):
                self.stop(request.request_id())
                self.close(sender)
                return
            sent = self.accepted(request.request_id(), sender, tensors)
        except Exception as error:
            said = isinstance(error, (RequestError, InputError))
            line = str(error) if said else f"tensorrt_llm failed: {error!r}"
            respond(sender, failure(line), final=True)
            return
        self.aboard.append(sent)

    def read(self, request: Any) -> dict[str, np.ndarray]:
        """What a request gives, by name."""
        found = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs}
        return {name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None}

    def accepted(self, name: str, sender: Any, tensors: dict[str, np.ndarray]) -> Sent:
        """A request's rows and sequences, on their way."""
        refuse_engine_only(tensors)
        wanted = {key: flag(tensors, key) for key in tensors if key.startswith("return_") or key == "streaming"}
        if wanted.get("streaming") and not self.decoupled:
            raise RequestError("streaming needs a decoupled repository")
        excluded = flag(tensors, "exclude_input_in_output", self.exclude_input)
        sent = Sent(name, sender, wanted | {"excluded": excluded}, times={"arrival_time_ns": time.monotonic_ns()})
        rows, sequences = len(tensors["input_ids"]), int(number(tensors, "num_return_sequences", 0, 1))
        if not 1 <= sequences <= self.flight.most:
            raise RequestError(f"num_return_sequences is {sequences}; 1 to {self.flight.most} are possible")
        if rows * sequences > 1 and not self.decoupled:
            raise RequestError(f"{rows * sequences} answers to one request need a decoupled repository")
        made = [self.request(tensors, row, wanted) for row in range(rows)]
        for asked in made:
            check(asked, self.vocab_size)
        for row, asked in enumerate(made):
            for sequence in range(sequences):
                how = replace(asked.sampling, seed=asked.sampling.seed + sequence)
                sent.answers.append((self.flight.add(replace(asked, sampling=how)), row, sequence))
        return sent

    def request(self, tensors: dict[str, np.ndarray], row: int, wanted: dict[str, bool]) -> Request:
        """A row's prompt, and how it is continued."""
        length = int(number(tensors, "input_lengths", row))
        ids = tensors["input_ids"][row].reshape(-1)[:length].tolist()
        if not 1 <= length == len(ids):
            raise RequestError(f"input_lengths is {length}, and input_ids has {len(ids)} tokens")
        if length > self.max_input:
            raise RequestError(f"Prompt length ({length}) exceeds maximum input length ({self.max_input})")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise RequestError(
                f"input_ids holds {min(ids)} to {max(ids)}; the vocabulary is 0 to {self.vocab_size - 1}"
            )
        most = int(number(tensors, "request_output_len", row))
        if most < 1 or length >= self.max_tokens:
            raise RequestError(f"request_output_len is {most} behind {length} tokens; there is room for none")
        end = int(number(tensors, "end_id", row, -1))
        bias = tensors.get("embedding_bias")
        if bias is not None and bias.size and bias[row].size != self.vocab_size:
            raise RequestError(f"embedding_bias has {bias[row].size} numbers; the vocabulary has {self.vocab_size}")
        return Request(
            ids,
            min(most, self.max_tokens - length),
            sampling(tensors, row),
            () if end < 0 else (end,),
            words(tensors, "stop_words_list", row),
            words(tensors, "bad_words_list", row),
            None if bias is None or not bias.size else torch.tensor(bias[row].reshape(-1)),
            bool(wanted.get("return_generation_logits")),
            bool(wanted.get("return_context_logits")),
        )

    def stop(self, name: str) -> None:
        """Give up every request of a name; what it has so far goes out."""
        for sent in [sent for sent in self.aboard if sent.name == name and name]:
            going = {answer for answer, _, _ in sent.answers if answer.reason is None}
            for answer in going:
                self.flight.cancel(answer)
            self.send(sent, going)

    def drop_cancelled(self) -> None:
        """Give up requests whose client has gone."""
        for sent in [sent for sent in self.aboard if sent.sender.is_cancelled()]:
            for answer, _, _ in sent.answers:
                self.flight.cancel(answer)
            self.aboard.remove(sent)
            self.close(sent.sender)

    def close(self, sender: Any) -> None:
        """End a request without tokens; one that is not decoupled must have a response."""
        with suppress(Exception):
            if self.decoupled:
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                respond(sender, failure("the request was stopped"), final=True)

    def send(self, sent: Sent, advanced: set[Answer]) -> None:
        """What answers have gone on with, where they stream; whole ones that have ended. What cannot be sent ends the
        request."""
        try:
            self.send_ready(sent, advanced)
        except Exception as error:
            self.fail(sent, f"tensorrt_llm failed: {error!r}")

    def send_ready(self, sent: Sent, advanced: set[Answer]) -> None:
        now = time.monotonic_ns()
        sent.times.setdefault("first_scheduled_time_ns", now)
        sent.times.setdefault("first_token_time_ns", now)
        sent.times["last_token_time_ns"] = now
        ready = [
            place
            for place in sent.answers
            if place[0] in advanced and (sent.wanted.get("streaming") or place[0].reason is not None)
        ]
        for answer, row, sequence in ready:
            final = sent.done and answer is ready[-1][0]
            broken = answer.reason == BEYOND
            respond(sent.sender, failure(BEYOND_DTYPE) if broken else self.response(sent, answer, row, sequence), final)
            sent.out[answer] = len(answer.ids)
        if sent.done:
            self.aboard.remove(sent)

    def fail(self, sent: Sent, line: str) -> None:
        """End a request with an error."""
        for answer, _, _ in sent.answers:
            self.flight.cancel(answer)
        self.aboard.remove(sent)
        respond(sent.sender, failure(line), final=True)

    def response(self, sent: Sent, answer: Answer, row: int, sequence: int) -> Any:
        """The next tokens of an answer that streams, or all of one; and what was asked for besides."""
        start, prompt, wanted = sent.out.get(answer, 0), list(answer.request.ids), sent.wanted
        ids = answer.ids[start:]
        shown = ids if wanted.get("streaming") or wanted["excluded"] else prompt + ids
        made: dict[str, Any] = {
            "output_ids": [[shown]],
            "sequence_length": [[len(shown)]],
            "batch_index": [[row]],
            "sequence_index": [[sequence]],
        }
        if wanted.get("return_log_probs"):
            made["cum_log_probs"] = [[sum(answer.log_probs)]]
            made["output_log_probs"] = [[answer.log_probs[start:]]]
        if wanted.get("return_context_logits"):
            made["context_logits"] = torch.cat([torch.empty(0, self.vocab_size), *answer.prompt_logits])[None].numpy()
        if wanted.get("return_generation_logits"):
            kept = answer.logits[start : len(answer.ids)]
            made["generation_logits"] = (torch.stack(kept) if kept else torch.empty(0, self.vocab_size))[
                None, None
            ].numpy()
        if wanted.get("return_num_input_tokens"):
            made["num_input_tokens"] = [[len(prompt)]]
        if wanted.get("return_num_output_tokens"):
            made["num_output_tokens"] = [[len(ids)]]
        if wanted.get("return_perf_metrics"):
            made |= {key: [[value]] for key, value in sent.times.items()}
        tensors = [pb_utils.Tensor(k, np.array(v, self.types[k])) for k, v in made.items() if k in self.types]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def failure(message: str) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message[:LONGEST_MESSAGE]))


def respond(sender: Any, response: Any, final: bool) -> None:
    """Send to a client, who may have gone."""
    with suppress(Exception):
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)
