"""Clients of a real tritonserver: gRPC, with streams, by tritonclient; HTTP as anybody's program speaks it."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

Arrays = dict[str, np.ndarray]
SECONDS = 30


def tensors(arrays: Arrays) -> list[grpc.InferInput]:
    made = []
    for name, array in arrays.items():
        made.append(grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    return made


def arrays_of(result: grpc.InferResult) -> Arrays:
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def infer(url: str, model: str, arrays: Arrays) -> Arrays:
    """One request, one response; an error is raised."""
    with grpc.InferenceServerClient(url) as client:
        return arrays_of(client.infer(model, tensors(arrays), client_timeout=SECONDS))


class Stream:
    """A gRPC stream: many requests at once, each with any number of responses."""

    def __init__(self, client: grpc.InferenceServerClient):
        self.client = client
        self.results: queue.Queue[grpc.InferResult | InferenceServerException] = queue.Queue()
        client.start_stream(callback=lambda result, error: self.results.put(error or result))

    def send(self, model: str, arrays: Arrays, request_id: str = "") -> None:
        self.client.async_stream_infer(model, tensors(arrays), request_id=request_id, enable_empty_final_response=True)

    def pieces(self) -> Iterator[tuple[str, Arrays | str, bool]]:
        """Request id, what it holds or what its error says, and whether it is the request's last; without end."""
        while True:
            result = self.results.get(timeout=SECONDS)
            if isinstance(result, InferenceServerException):
                yield "", result.message(), True
                continue
            response = result.get_response()
            yield response.id, arrays_of(result), response.parameters["triton_final_response"].bool_param


@contextmanager
def stream(url: str, cancel: bool = False) -> Iterator[Stream]:
    """A stream that is closed when its requests are answered; or cancels them, as it does when a test fails."""
    with grpc.InferenceServerClient(url) as client:
        opened = Stream(client)
        try:
            yield opened
        except BaseException:
            cancel = True
            raise
        finally:
            client.stop_stream(cancel_requests=cancel)


def ask(url: str, model: str, arrays: Arrays) -> list[Arrays | str]:
    """Every response to one request, those without tensors left out; an error is its message, and the last."""
    responses = []
    with stream(url) as opened:
        opened.send(model, arrays)
        for _, response, last in opened.pieces():
            responses += [response] if response else []
            if last:
                return responses
    return responses


def texts_of(responses: list[Arrays | str]) -> list[str]:
    """The first text of each response."""
    assert not any(isinstance(response, str) for response in responses), responses
    return [response["text_output"].flat[0].decode() for response in responses if not isinstance(response, str)]


def post(http: str, path: str, body: Any) -> tuple[int, str]:
    """The status and the text of a POST of JSON."""
    request = Request(
        f"http://{http}/v2/models/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urlopen(request, timeout=SECONDS) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def events(text: str) -> list[dict[str, Any]]:
    """The JSON of each server-sent event."""
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
