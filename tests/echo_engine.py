"""Stands in for an engine in a real tritonserver: tensorrt_llm/1/model.py, of the Python backend.

It answers with the prompt: a response a row, or one a token if it streams; then top_k is the milliseconds from one to
the next. It writes to the server's log which requests were stopped.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Requests are answered in threads, for one may stop another."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.outputs = {tensor["name"] for tensor in config["output"]}
        self.stopped: set[str] = set()

    def execute(self, requests: list[Any]) -> list[Any] | None:
        if not self.decoupled:
            return [self.once(request) for request in requests]
        for request in requests:
            if value(request, "stop", False):
                self.stopped.add(request.request_id())
                request.get_response_sender().send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                threading.Thread(target=self.stream, args=(request, request.get_response_sender())).start()
        return None

    def once(self, request: Any) -> Any:
        try:
            [response] = self.responses(request)
            return response
        except ValueError as error:
            return failure(error)

    def stream(self, request: Any, sender: Any) -> None:
        """In an ensemble an error must be the last response: the server waits for another one for ever."""
        try:
            for response in self.responses(request):
                sender.send(response)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except ValueError as error:
            sender.send(failure(error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def responses(self, request: Any) -> Iterator[Any]:
        rows, lengths = array(request, "input_ids"), array(request, "input_lengths").reshape(-1)
        streaming, pause = value(request, "streaming", False), value(request, "runtime_top_k", 0) / 1000
        if not self.decoupled and (streaming or len(rows) > 1):
            raise ValueError("several responses need the decoupled policy")
        if value(request, "request_output_len", 0) == 666:
            raise ValueError("the engine refuses 666 tokens")
        for row, (ids, length) in enumerate(zip(rows, lengths, strict=True)):
            for piece in ids[:length].reshape(-1, 1) if streaming else [ids[:length]]:
                if request.request_id() in self.stopped:
                    print(f"echo: {request.request_id()} was stopped", file=sys.stderr, flush=True)
                    return
                yield self.response(piece, row)
                time.sleep(pause)

    def response(self, ids: np.ndarray, row: int) -> Any:
        arrays = {
            "output_ids": ids.reshape(1, 1, -1).astype(np.int32),
            "sequence_length": np.array([[len(ids)]], np.int32),
            "batch_index": np.array([[row]], np.int32),
            "sequence_index": np.array([[0]], np.int32),
        }
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(*item) for item in arrays.items()])


def failure(error: ValueError) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error)))


def array(request: Any, name: str) -> np.ndarray:
    values: np.ndarray = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    return values


def value(request: Any, name: str, default: Any) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().flat[0]
