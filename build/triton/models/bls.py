"""Triton's Python backend runs this as tensorrt_llm_bls/1/model.py: text in, text out, streamed without faults.

It calls preprocessing and tensorrt_llm as the ensemble would, and keeps the tokens of each answer, so that the pieces
of a streamed answer joined are the whole answer: no lost spaces, no broken characters. With several beams each response
holds the whole text of every beam so far, because a beam may change what it said.

Parameters: steps, the ensemble's first two steps as JSON; tokenizer_dir; skip_special_tokens (true or false).
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenization import IncrementalDetokenizer, decode, is_on, load_tokenizer

Tensors = dict[str, Any]  # the ensemble's tensor name -> pb_utils.Tensor
Answer = tuple[int, int]  # batch index, sequence index
INTERNAL = "_"  # begins the names of tensors that go from step to step


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
        except Exception as error:  # one request must not take the others with it
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
        except Exception as error:  # the sender must be closed whatever happens
            sender.send(failure(error))
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
        detokenizers: dict[Answer, IncrementalDetokenizer] = defaultdict(
            lambda: IncrementalDetokenizer(self.tokenizer, self.skip_special_tokens)
        )
        for results in self.call(self.engine, tensors, request_id, self.decoupled):
            tokens, lengths = results["_TOKENS_BATCH"].as_numpy()[0], results["_SEQUENCE_LENGTH"].as_numpy()[0]
            beams = [beam[: max(int(length), 0)] for beam, length in zip(tokens, lengths, strict=True)]
            if streaming and len(beams) == 1:
                answer = number(results, "batch_index"), number(results, "sequence_index")
                texts = [detokenizers[answer].push(beams[0])]
            else:
                texts = [decode(self.tokenizer, beam, self.skip_special_tokens) for beam in beams]
            yield response(texts, [tensor for name, tensor in results.items() if not name.startswith(INTERNAL)])
        for (batch_index, sequence_index), detokenizer in detokenizers.items():
            if rest := detokenizer.finish():
                names = {"batch_index": batch_index, "sequence_index": sequence_index}
                yield response([rest], [pb_utils.Tensor(k, np.array([[v]], np.int32)) for k, v in names.items()])

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


def response(texts: list[str], tensors: list[Any]) -> Any:
    text = np.array([[text.encode("utf-8", "replace") for text in texts]], np.object_)
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("text_output", text), *tensors])


def failure(error: Exception) -> Any:
    message = str(error) if isinstance(error, RequestError) else f"tensorrt_llm_bls failed: {error!r}"
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message))


def renamed(tensor: Any, name: str) -> Any:
    """The same values under another name; NumPy has no bfloat16, which therefore goes by DLPack."""
    try:
        return pb_utils.Tensor(name, tensor.as_numpy())
    except pb_utils.TritonModelException:
        return pb_utils.Tensor.from_dlpack(name, tensor.to_dlpack())


def number(tensors: Tensors, name: str) -> int:
    """A single number, 0 where the engine did not say."""
    return int(tensors[name].as_numpy().item()) if name in tensors else 0
