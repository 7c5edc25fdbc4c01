"""Plays Triton: loads the Python models of a repository, checks what they answer against their config, runs ensembles.

This module stands in for triton_python_backend_utils, so its names and behaviour are Triton's.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
NUMPY = {
    "TYPE_UINT8": np.uint8,
    "TYPE_BOOL": np.bool_,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_UINT64": np.uint64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_STRING": np.object_,
}
Engine = Callable[[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]
server: Server


class TritonModelException(Exception):
    pass


class TritonError:
    def __init__(self, message: str):
        self._message = message

    def message(self) -> str:
        return self._message


class Tensor:
    def __init__(self, name: str, array: np.ndarray):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} is no array")
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        if isinstance(self._array, Brain16):
            raise TritonModelException("NumPy has no bfloat16")
        return self._array

    def to_dlpack(self) -> np.ndarray:
        return self._array

    @classmethod
    def from_dlpack(cls, name: str, array: np.ndarray) -> Tensor:
        return cls(name, array)


class Brain16(np.ndarray):
    """Marks what Triton would hold as bfloat16."""


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None):
        self._tensors, self._error = output_tensors, error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class ResponseSender:
    def __init__(self, cancelled_after: int | None):
        self.sent: list[InferenceResponse] = []
        self.closed, self.cancelled_after = False, cancelled_after

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if self.closed:
            raise TritonModelException("nothing may be sent after the final flag")
        self.closed = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if response is not None:
            assert self.closed or not response.has_error(), "who called this model would wait for more than its error"
            self.sent.append(response)

    def is_cancelled(self) -> bool:
        return self.cancelled_after is not None and len(self.sent) >= self.cancelled_after


class InferenceRequest:
    def __init__(
        self,
        model_name: str = "",
        inputs: list[Tensor] | None = None,
        requested_output_names: list[str] | None = None,
        request_id: str = "",
        cancelled_after: int | None = None,
    ):
        self.model_name, self.names, self.id = model_name, requested_output_names, request_id
        self.tensors = {tensor.name(): tensor for tensor in inputs or []}
        self.sender = ResponseSender(cancelled_after)

    def get_response_sender(self) -> ResponseSender:
        return self.sender

    def exec(self, decoupled: bool = False) -> Any:
        if server.decoupled(self.model_name) and not decoupled:
            return InferenceResponse([], TritonError("a decoupled model must be called as one"))
        answers = server.call(self.model_name, {name: tensor._array for name, tensor in self.tensors.items()})
        responses = [
            answer
            if isinstance(answer, InferenceResponse)
            else InferenceResponse([Tensor(k, v) for k, v in answer.items() if k in (self.names or answer)])
            for answer in answers
        ]
        if not decoupled:
            return responses[0]
        ended = not server.decoupled(self.model_name) or (responses and responses[-1].has_error())
        return iter(responses if ended else [*responses, InferenceResponse([])])


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return request.tensors.get(name)


def using_decoupled_model_transaction_policy(config: dict[str, Any]) -> bool:
    return bool(config.get("model_transaction_policy", {}).get("decoupled", False))


def triton_string_to_numpy(name: str) -> type:
    return NUMPY[name]


class Server:
    """A repository being served, its engine replaced by a function."""

    def __init__(self, repository: Path, engine: Engine):
        global server
        server = self
        self.engine, self.stopped = engine, 0
        self.configs = {
            path.parent.name: text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
            for path in repository.glob("*/config.pbtxt")
        }
        self.models = {
            name: load(repository / name / "1", config) for name, config in self.configs.items() if is_python(config)
        }

    def decoupled(self, name: str) -> bool:
        return bool(self.configs[name].model_transaction_policy.decoupled)

    def call(self, name: str, inputs: dict[str, np.ndarray]) -> list[Any]:
        """Every response of a model to one request: a dict of arrays, or an InferenceResponse with an error."""
        return self.calls(name, [inputs])[0]

    def calls(
        self, name: str, requests: list[dict[str, np.ndarray]], cancelled_after: int | None = None
    ) -> list[list[Any]]:
        """The responses to several requests that reach a model together."""
        config = self.configs[name]
        for inputs in requests:
            check_tensors(inputs, config.input, config)
        if config.platform == "ensemble":
            return [list(self.ensemble(config, inputs)) for inputs in requests]
        if name == "tensorrt_llm":
            return [self.run_engine(inputs) for inputs in requests]
        made = [
            InferenceRequest(name, [Tensor(k, v) for k, v in inputs.items()], cancelled_after=cancelled_after)
            for inputs in requests
        ]
        responses = self.models[name].execute(made)
        if self.decoupled(name):
            assert responses is None
            assert all(request.sender.closed for request in made)
            answered = [request.sender.sent for request in made]
        else:
            assert len(responses) == len(made)
            answered = [[response] for response in responses]
        return [[self.checked(config, response) for response in sent] for sent in answered]

    def run_engine(self, inputs: dict[str, np.ndarray]) -> list[Any]:
        if "stop" in inputs and inputs["stop"].any():
            self.stopped += 1
            return []
        several, streaming = len(inputs["input_ids"]) > 1, "streaming" in inputs and inputs["streaming"].any()
        if (several or streaming) and not self.decoupled("tensorrt_llm"):
            return [InferenceResponse([], TritonError("several responses need the decoupled policy"))]
        responses = self.engine(inputs)
        for response in responses:
            check_tensors(response, self.configs["tensorrt_llm"].output, self.configs["tensorrt_llm"])
        return responses

    def checked(self, config: Any, response: InferenceResponse) -> Any:
        if response.has_error():
            return response
        outputs = {tensor.name(): tensor._array for tensor in response.output_tensors()}
        check_tensors(outputs, config.output, config)
        return outputs

    def ensemble(self, config: Any, inputs: dict[str, np.ndarray]) -> Iterator[Any]:
        """Steps in their order; each response of a step goes on by itself."""
        flows = [dict(inputs)]
        for step in config.ensemble_scheduling.step:
            after = []
            for flow in flows:
                mapped = {name: flow[source] for name, source in step.input_map.items() if source in flow}
                for response in self.call(step.model_name, mapped):
                    if isinstance(response, InferenceResponse):
                        yield response
                        return
                    named = {target: response[name] for name, target in step.output_map.items() if name in response}
                    after.append({**flow, **named})
            flows = after
        wanted = {tensor.name for tensor in config.output}
        yield from ({name: value for name, value in flow.items() if name in wanted} for flow in flows)


def is_python(config: Any) -> bool:
    return bool(config.backend == "python")


def load(version: Path, config: Any) -> Any:
    """The model of model.py, initialized as Triton's stub process does it."""
    spec = importlib.util.spec_from_file_location(f"triton_model_{config.name}", version / "model.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    helpers = {path.stem for path in version.glob("*.py")} - {"model"}
    before = {name: sys.modules.pop(name) for name in helpers if name in sys.modules}
    sys.modules["triton_python_backend_utils"] = sys.modules[__name__]
    sys.path.insert(0, str(version))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(version))
        for name in helpers:
            sys.modules.pop(name, None)
        sys.modules.update(before)
    model = module.TritonPythonModel()
    as_json = json_format.MessageToDict(
        config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    model.initialize({"model_config": json.dumps(as_json), "model_name": config.name, "model_version": "1"})
    return model


def check_tensors(values: dict[str, np.ndarray], declared: Any, config: Any) -> None:
    """Names, types and dims as the configuration declares them, with a batch dimension of at most max_batch_size."""
    known = {tensor.name: tensor for tensor in declared}
    for name, value in values.items():
        tensor = known[name]
        dtype = model_config_pb2.DataType.Name(tensor.data_type)
        if dtype != "TYPE_BF16":
            assert value.dtype == NUMPY[dtype], f"{config.name}: {name} is {value.dtype}, not {dtype}"
        assert value.ndim == len(tensor.dims) + 1, f"{config.name}: {name} has shape {value.shape}"
        assert value.shape[0] <= config.max_batch_size
        for size, dim in zip(value.shape[1:], tensor.dims, strict=True):
            assert dim in (-1, size), f"{config.name}: {name} has shape {value.shape}, not {list(tensor.dims)}"
        if dtype == "TYPE_STRING":
            assert all(isinstance(item, bytes) for item in value.flat)
    for tensor in declared:
        assert getattr(tensor, "optional", True) or tensor.name in values, f"{config.name}: {tensor.name} is missing"


def texts(*rows: str | bytes) -> np.ndarray:
    """[rows, 1] of UTF-8, as clients send it."""
    return np.array([[row.encode() if isinstance(row, str) else row] for row in rows], np.object_)


def asked(*prompts: str | bytes, max_tokens: int = 10_000, **more: np.ndarray) -> dict[str, np.ndarray]:
    """A request to the ensemble or the BLS model."""
    return {"text_input": texts(*prompts), "max_tokens": np.full((len(prompts), 1), max_tokens, np.int32), **more}


def echo(inputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """An engine that answers with the prompt: a response a row, or one a token if it streams."""
    streaming = "streaming" in inputs and bool(inputs["streaming"].any())
    responses = []
    for row, (ids, (length,)) in enumerate(zip(inputs["input_ids"], inputs["input_lengths"], strict=True)):
        for piece in ids[:length].reshape(-1, 1) if streaming else [ids[:length]]:
            responses.append(tokens(piece, row=row))
    return responses


def tokens(*beams: Any, row: int = 0) -> dict[str, np.ndarray]:
    """An engine's response: beams of any lengths, padded with -1 as the backend does."""
    longest = max(len(beam) for beam in beams)
    ids = np.full((1, len(beams), longest), -1, np.int32)
    for filled, beam in zip(ids[0], beams, strict=True):
        filled[: len(beam)] = beam
    return {
        "output_ids": ids,
        "sequence_length": np.array([[len(beam) for beam in beams]], np.int32),
        "batch_index": np.array([[row]], np.int32),
        "sequence_index": np.array([[0]], np.int32),
    }
