"""Models of Triton's Python backend that tell what the backend does: the same file is model.py of all of them.

``probe`` makes every call that a repository's models make, and answers with what came of it, as JSON. It calls the
others: ``once`` answers with one response, ``many`` with as many as it is asked for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.name, self.decoupled = args["model_name"], pb_utils.using_decoupled_model_transaction_policy(config)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        if self.name == "once":
            return [once(request) for request in requests]
        for request in requests:
            (many if self.name == "many" else probe)(request, request.get_response_sender())
        return None


def numbers(request: Any, name: str = "NUMBERS") -> np.ndarray:
    values: np.ndarray = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    return values


def failure(message: str) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message))


def once(request: Any) -> Any:
    """Both outputs, or an error for negative numbers."""
    values = numbers(request)
    if values.min() < 0:
        return failure("negative")
    tensors = [pb_utils.Tensor("TWICE", values * 2), pb_utils.Tensor("TEXT", np.array([[b"text"]], np.object_))]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def many(request: Any, sender: Any) -> None:
    """A response for each number; an error if the first is negative, which must be the last response.

    Of an error without the final flag, or behind another response, tritonserver 2.51 tells a model that called this one
    nothing, and lets it wait.
    """
    values = numbers(request).flatten().tolist()
    if values and values[0] < 0:
        sender.send(failure("negative"), flags=FINAL)
        return
    for value in values:
        tensor = pb_utils.Tensor("TWICE", np.array([[2 * value]], np.int32))
        sender.send(pb_utils.InferenceResponse(output_tensors=[tensor]))
    sender.send(flags=FINAL)


def probe(request: Any, sender: Any) -> None:
    outcomes = {name: attempt(partial(call, request)) for name, call in CALLS.items()}
    outcomes["is_cancelled"] = attempt(sender.is_cancelled)
    text = np.array([[json.dumps(outcomes).encode()]], np.object_)
    outcome = pb_utils.Tensor("OUTCOME", text)
    brain = pb_utils.Tensor.from_dlpack("BRAIN_OUT", pb_utils.get_input_tensor_by_name(request, "BRAIN").to_dlpack())
    sender.send(pb_utils.InferenceResponse(output_tensors=[outcome, brain]), flags=FINAL)
    print(f"after the final flag: {attempt(lambda: sender.send(flags=FINAL))}", file=sys.stderr, flush=True)


def attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException as error:
        return ["raised", type(error).__name__]


def described(tensor: Any) -> Any:
    """A tensor's name, type and values."""
    if tensor is None:
        return None
    array = tensor.as_numpy()
    values = [value.decode() if isinstance(value, bytes) else value for value in array.flatten().tolist()]
    kinds = sorted({type(value).__name__ for value in array.flatten().tolist()})
    return [tensor.name(), str(array.dtype), list(array.shape), kinds, values]


def answered(response: Any) -> Any:
    """What a response holds."""
    error = response.error()
    tensors = sorted(described(tensor) for tensor in response.output_tensors()) if error is None else []
    return [response.has_error(), error and error.message(), tensors]


def called(model: str, values: list[int], outputs: list[str], decoupled: bool = False) -> Any:
    array = np.array([values], np.int32)
    call = pb_utils.InferenceRequest(
        model_name=model,
        inputs=[pb_utils.Tensor("NUMBERS", array)],
        requested_output_names=outputs,
        request_id="an id",
    )
    if decoupled:
        return [answered(response) for response in call.exec(decoupled=True)]
    return answered(call.exec())


def given(name: str) -> Callable[[Any], Any]:
    return lambda request: described(pb_utils.get_input_tensor_by_name(request, name))


def renamed(request: Any) -> Any:
    made = pb_utils.Tensor.from_dlpack("other", pb_utils.get_input_tensor_by_name(request, "BRAIN").to_dlpack())
    return [made.name(), attempt(made.as_numpy)]


TYPES = ("BOOL", "INT32", "INT64", "UINT64", "FP16", "FP32", "STRING")
CALLS: dict[str, Callable[[Any], Any]] = {
    **{name: given(name) for name in (*TYPES, "ABSENT", "UNKNOWN")},
    "BF16 in NumPy": given("BRAIN"),
    "a tensor of str": lambda _: described(pb_utils.Tensor("x", np.array([["\u00e9"]], np.object_))),
    "a tensor of nothing": lambda _: described(pb_utils.Tensor("x", np.empty((1, 2, 0), np.int32))),
    "a tensor of a list": lambda _: pb_utils.Tensor("x", [1]) and "taken",
    "a response without error": lambda _: answered(pb_utils.InferenceResponse([pb_utils.Tensor("x", np.ones((1, 1)))])),
    "a response with one": lambda _: answered(failure("why \u00e9")),
    "no output tensors": lambda _: len(pb_utils.InferenceResponse(output_tensors=[]).output_tensors()),
    "one response": lambda _: called("once", [1, 2], ["TWICE", "TEXT"]),
    "one of its outputs": lambda _: called("once", [1, 2], ["TEXT"]),
    "its error": lambda _: called("once", [-1], ["TWICE"]),
    "one response as a stream": lambda _: called("once", [1], ["TWICE"], True),
    "three responses": lambda _: called("many", [1, 2, 3], ["TWICE"], True),
    "no response": lambda _: called("many", [], ["TWICE"], True),
    "an error": lambda _: called("many", [-1, 3], ["TWICE"], True),
    "nothing asked for": lambda _: called("many", [1], [], True),
    "many as one": lambda _: called("many", [1], ["TWICE"])[0],
    "renamed by DLPack": renamed,
    "types": lambda _: [pb_utils.triton_string_to_numpy(f"TYPE_{name}").__name__ for name in TYPES],
}  # fmt: skip
