"""try.py against a gRPC server that speaks Triton's protocol and serves the repository beside it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from enginesmith.build.triton.generate import generate
from enginesmith.build.triton.options import TritonOptions

from .triton_backend import InferenceResponse, Server, echo
from .triton_folders import write_engine, write_tokenizer

PROMPT = "hello \U0001f468\u200d\U0001f469\u200d\U0001f467 the stop"
TYPES = {"INT32": np.int32, "BOOL": np.bool_}


class Frontend(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Triton's gRPC endpoint, as much of it as the client uses."""

    def __init__(self, server: Server):
        self.server = server

    def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=request.name in self.server.configs)

    def ModelConfig(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelConfigResponse(config=self.server.configs[request.name])

    def ModelInfer(self, request: Any, context: Any) -> Any:
        [answer] = self.server.call(request.model_name, inputs_of(request))
        if isinstance(answer, InferenceResponse):
            context.abort(grpc.StatusCode.INTERNAL, answer.error().message())
        return answer_to(request, answer)

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in requests:
            for answer in self.server.call(request.model_name, inputs_of(request)):
                if isinstance(answer, InferenceResponse):
                    yield service_pb2.ModelStreamInferResponse(error_message=answer.error().message())
                else:
                    yield service_pb2.ModelStreamInferResponse(infer_response=answer_to(request, answer))
            last = service_pb2.ModelInferResponse(model_name=request.model_name)
            last.parameters["triton_final_response"].bool_param = True
            yield service_pb2.ModelStreamInferResponse(infer_response=last)


def inputs_of(request: Any) -> dict[str, np.ndarray]:
    inputs = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        is_text = tensor.datatype == "BYTES"
        values = deserialize_bytes_tensor(raw) if is_text else np.frombuffer(raw, TYPES[tensor.datatype])
        inputs[tensor.name] = values.reshape(list(tensor.shape))
    return inputs


def answer_to(request: Any, answer: dict[str, np.ndarray]) -> Any:
    text = answer["text_output"]
    response = service_pb2.ModelInferResponse(model_name=request.model_name)
    response.outputs.add(name="text_output", datatype="BYTES", shape=text.shape)
    response.raw_output_contents.append(serialize_byte_tensor(text).item())
    response.parameters["triton_final_response"].bool_param = False
    return response


@pytest.mark.parametrize(
    ("decoupled", "asked", "told"),
    [
        (False, ["plain"], "ensemble"),
        (True, ["plain", "streaming"], "tensorrt_llm_bls"),
    ],
)
def test_try_script(decoupled: bool, asked: list[str], told: str, tmp_path: Path) -> None:
    folders = [write_engine(tmp_path / "engine"), write_tokenizer(tmp_path / "tokenizer"), tmp_path / "repository"]
    repository = generate(TritonOptions(*map(str, folders), decoupled=decoupled))
    endpoint = grpc.server(futures.ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Frontend(Server(repository, echo)), endpoint)
    url = f"127.0.0.1:{endpoint.add_insecure_port('127.0.0.1:0')}"
    endpoint.start()
    try:
        program = [sys.executable, str(repository / "try.py"), PROMPT, "--url", url]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60)
        assert done.stdout == "".join(f"{told}, {how}:\n{PROMPT}\n" for how in asked), done.stderr
        failed = subprocess.run([*program, "--max_tokens", "0"], capture_output=True, text=True, timeout=60)
        assert failed.returncode == 1
        assert "max_tokens is 0" in failed.stderr
        assert "Traceback" not in failed.stderr
        unknown = subprocess.run([*program, "--model", "none"], capture_output=True, text=True, timeout=60)
        assert (unknown.returncode, "Traceback" in unknown.stderr) == (1, False)
    finally:
        endpoint.stop(None)
