"""Triton's Python backend runs this as tensorrt_llm_bls/1/model.py: text in, text out, streamed without faults.

It calls preprocessing and tensorrt_llm as the ensemble would, and keeps the tokens of each answer, so that the pieces
of a streamed answer joined are the whole answer: no lost spaces, no broken characters. With several beams each response
holds the whole text of every beam so far, because a beam may change what it said.

Stop words are looked for on the text, wherever they begin and end in tokens: the answer is cut before the first of
them, and the engine is stopped. The beginning of what may become one is not sent before that is known.

Parameters: steps, the ensemble's first two steps as JSON; tokenizer_dir; skip_special_tokens, exclude_input_in_output
(true or false).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from loading import load_tokenizer
from stopping import StopWatch, cut
from tokenization import IncrementalDetokenizer, decode, is_on

Tensors = dict[str, Any]  # the ensemble's tensor name -> pb_utils.Tensor
INTERNAL = "_"  # begins the names of tensors that go from step to step
LONGEST_MESSAGE = 400  # characters of an error


class RequestError(ValueError):
    """What is wrong with a request, in a line for who sent it."""


class TritonPythonModel:
    """The chain of models for one request after another; a request occupies an instance until its last token."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        values = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.preprocessing, self.engine = json.loads(values["steps"])
        self.tokenizer = load_tokenizer(values["tokenizer_dir"])
        self.skip_special_tokens = is_on(values, "skip_special_tokens", "true")
        self.exclude_input = is_on(values, "exclude_input_in_output", "true")
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.input_names = [tensor["name"] for tensor in config["input"]]

    def execute(self, requests: list[Any]) -> list[Any] | None:
        if not self.decoupled:
            return [self.answer_once(request) for request in requests]
        for request in requests:
            self.stream(request)
        return None

    def answer_once(self, request: Any) -> Any:
        try:
            responses = list(self.responses(request, str(uuid.uuid4())))
            if len(responses) != 1:
                raise RequestError(f"{len(responses)} answers to one request need a decoupled repository")
            return responses[0]
        except BaseException as error:  # nor must a panic of the tokenizer's library, which is no Exception
            return failure(error)

    def stream(self, request: Any) -> None:
        """Send every response as it comes; when the client has gone, stop the engine and let the rest pass unsent."""
        sender, request_id, stopped = request.get_response_sender(), str(uuid.uuid4()), False
        try:
            for response in self.responses(request, request_id):
                if not stopped and sender.is_cancelled():
                    self.stop(request_id)
                    stopped = True
                if not stopped:
                    sender.send(response)
        except BaseException as error:  # as above; and the sender must be closed whatever happens
            with suppress(Exception):
                sender.send(failure(error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                return
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def responses(self, request: Any, request_id: str) -> Iterator[Any]:
        """The request's responses in the order in which the engine gives them."""
        found = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self.input_names}
        tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
        streaming = "stream" in tensors and bool(tensors["stream"].as_numpy().any())
        if streaming and not self.decoupled:
            raise RequestError("stream needs a decoupled repository; leave it out or generate with --decoupled")
        for prepared in self.call(self.preprocessing, tensors, request_id, decoupled=False):
            tensors |= prepared
        try:
            yield from self.generated(tensors, request_id, streaming)
        except BaseException:
            if streaming:
                with suppress(Exception):
                    self.stop(request_id)
            raise

    def generated(self, tensors: Tensors, request_id: str, streaming: bool) -> Iterator[Any]:
        """What the engine answers, as text; once every answer has come to a stop word, the engine is stopped."""
        words, heads = stop_words(tensors), [] if streaming else self.prompts(tensors)
        several = tensors.get("num_return_sequences")
        awaited = len(words) * (1 if several is None else int(several.as_numpy().max(initial=1)))
        answers: dict[tuple[int, int], Answer] = {}  # by batch index and sequence index
        for results in self.call(self.engine, tensors, request_id, self.decoupled):
            row, sequence = number(results, "batch_index"), number(results, "sequence_index")
            if (row, sequence) not in answers:
                head = heads[row] if row < len(heads) else ""
                answers[row, sequence] = Answer(self, words[row] if row < len(words) else [], head, streaming)
            answer = answers[row, sequence]
            if answer.ended:
                continue
            tokens, lengths = results["_TOKENS_BATCH"].as_numpy()[0], results["_SEQUENCE_LENGTH"].as_numpy()[0]
            texts = answer.push([beam[: max(int(size), 0)] for beam, size in zip(tokens, lengths, strict=True)])
            yield response(texts, [tensor for name, tensor in results.items() if not name.startswith(INTERNAL)])
            if streaming and answer.ended and sum(answer.ended for answer in answers.values()) >= awaited:
                self.stop(request_id)
        for (row, sequence), answer in answers.items():
            if rest := answer.finish():
                names = {"batch_index": row, "sequence_index": sequence}
                yield response([rest], [pb_utils.Tensor(k, np.array([[v]], np.int32)) for k, v in names.items()])

    def prompts(self, tensors: Tensors) -> list[str]:
        """What stands before each row's answer and is no part of it: its prompt, where the engine repeats that."""
        given = tensors.get("exclude_input_in_output")
        if self.exclude_input if given is None else given.as_numpy().all():
            return []
        rows, sizes = tensors["_INPUT_ID"].as_numpy(), tensors["_REQUEST_INPUT_LEN"].as_numpy()
        return [self.text(row[: int(size[0])]) for row, size in zip(rows, sizes, strict=True)]

    def text(self, ids: np.ndarray) -> str:
        text: str = decode(self.tokenizer, ids, self.skip_special_tokens)
        return text

    def call(self, step: dict[str, Any], tensors: Tensors, request_id: str, decoupled: bool) -> Iterator[Tensors]:
        """Run a model on the tensors that its step maps; yield what it answers under the ensemble's names."""
        call = pb_utils.InferenceRequest(
            model_name=step["model"],
            inputs=[renamed(tensors[source], name) for name, source in step["inputs"].items() if source in tensors],
            requested_output_names=list(step["outputs"]),
            request_id=request_id,
        )
        answers = call.exec(decoupled=True) if decoupled else [call.exec()]
        for answer in answers:
            if answer.has_error():
                raise RequestError(answer.error().message())
            outputs = {tensor.name(): tensor for tensor in answer.output_tensors()}
            if outputs:  # the last response of a decoupled model may be empty
                yield {step["outputs"][name]: renamed(outputs[name], step["outputs"][name]) for name in outputs}

    def stop(self, request_id: str) -> None:
        """Tell the engine to give up a request; what it answers to that is of no interest."""
        numbers = {"input_ids": 0, "input_lengths": 1, "request_output_len": 1}
        inputs = [pb_utils.Tensor(name, np.array([[value]], np.int32)) for name, value in numbers.items()]
        inputs.append(pb_utils.Tensor("stop", np.array([[True]])))
        call = pb_utils.InferenceRequest(
            model_name=self.engine["model"], inputs=inputs, requested_output_names=[], request_id=request_id
        )
        list(call.exec(decoupled=True))


class Answer:
    """One answer to one prompt, as the engine's tokens for it come in.

    Args:
        words: its stop words.
        head: the text before the answer that whole texts begin with.
        streaming: of a single beam each response holds the next tokens, else all of them.

    Attributes:
        ended: a stop word was found, in each beam.
    """

    def __init__(self, model: TritonPythonModel, words: list[str], head: str, streaming: bool):
        self.model, self.words, self.head, self.streaming = model, words, head, streaming
        self.detokenizer = IncrementalDetokenizer(model.tokenizer, model.skip_special_tokens)
        self.watch = StopWatch(words)
        self.ended = False

    def push(self, beams: list[np.ndarray]) -> list[str]:
        """The text of each beam: what is new of the only one of a streamed answer, otherwise all of it."""
        if self.streaming and len(beams) == 1:
            piece: str = self.watch.push(self.detokenizer.push(beams[0]))
            self.ended = self.watch.ended
            return [piece]
        texts = [self.model.text(beam) for beam in beams]
        whole = [cut(text, self.words, len(self.head) if text.startswith(self.head) else 0) for text in texts]
        self.ended = all(found for _, found in whole)
        return [text for text, _ in whole]

    def finish(self) -> str:
        """What a streamed answer still holds back when its last token has come."""
        rest: str = self.watch.push(self.detokenizer.finish()) + self.watch.finish()
        return rest


def stop_words(tensors: Tensors) -> list[list[str]]:
    """Each row's stop words, which preprocessing has found to be UTF-8."""
    if "stop_words" not in tensors:
        return [[] for _ in tensors["text_input"].as_numpy()]
    rows = tensors["stop_words"].as_numpy()
    texts = [[word if isinstance(word, str) else bytes(word).decode("utf-8") for word in row] for row in rows]
    return [[text for text in row if text] for row in texts]


def response(texts: list[str], tensors: list[Any]) -> Any:
    text = np.array([[text.encode("utf-8", "replace") for text in texts]], np.object_)
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("text_output", text), *tensors])


def failure(error: BaseException) -> Any:
    message = str(error) if isinstance(error, RequestError) else f"tensorrt_llm_bls failed: {error!r}"
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message[:LONGEST_MESSAGE]))


def renamed(tensor: Any, name: str) -> Any:
    """The same values under another name; NumPy has no bfloat16, which therefore goes by DLPack."""
    try:
        return pb_utils.Tensor(name, tensor.as_numpy())
    except pb_utils.TritonModelException:
        return pb_utils.Tensor.from_dlpack(name, tensor.to_dlpack())


def number(tensors: Tensors, name: str) -> int:
    """A single number, 0 where the engine did not say."""
    return int(tensors[name].as_numpy().item()) if name in tensors else 0
