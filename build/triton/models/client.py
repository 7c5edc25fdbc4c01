#!/usr/bin/env python3
"""Ask the server something: pip install 'tritonclient[grpc]', then python try.py "The capital of France is"

Sends one plain request, and a streaming one if the model streams. The model is tensorrt_llm_bls where the server has
it, else ensemble.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

URL = f"localhost:{os.environ.get('GRPC_PORT', 8001)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt", nargs="?", default="The capital of France is")
    parser.add_argument("--url", default=URL, help="host:port of Triton's gRPC endpoint")
    parser.add_argument("--model", help="tensorrt_llm_bls or ensemble")
    parser.add_argument("--max_tokens", type=int, default=64)
    options = parser.parse_args()
    try:
        client = grpc.InferenceServerClient(options.url)
        model = options.model or next(name for name in ("tensorrt_llm_bls", "ensemble") if client.is_model_ready(name))
        decoupled = client.get_model_config(model).config.model_transaction_policy.decoupled
        for stream in (False, True) if decoupled else (False,):
            print(f"{model}, {'streaming' if stream else 'plain'}:")
            ask(client, model, options.prompt, options.max_tokens, stream, decoupled)
    except StopIteration:
        sys.exit(f"{options.url}: neither tensorrt_llm_bls nor ensemble is ready; name one with --model")
    except InferenceServerException as error:
        sys.exit(f"{options.url}: {error.message()}")


def ask(
    client: grpc.InferenceServerClient, model: str, prompt: str, max_tokens: int, stream: bool, decoupled: bool
) -> None:
    """Print the answer; a decoupled model is asked through a stream whether it streams or not."""
    inputs = [
        tensor("text_input", np.array([[prompt.encode()]], np.object_), "BYTES"),
        tensor("max_tokens", np.array([[max_tokens]], np.int32), "INT32"),
        tensor("stream", np.array([[stream]]), "BOOL"),
    ]
    if not decoupled:
        print(text_of(client.infer(model, inputs)))
        return
    answers: queue.Queue[grpc.InferResult | InferenceServerException] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put(error or result))
    try:
        client.async_stream_infer(model, inputs, enable_empty_final_response=True)
        final = False
        while not final:
            answer = answers.get()
            if isinstance(answer, InferenceServerException):
                raise answer
            print(text_of(answer), end="", flush=True)
            final = answer.get_response().parameters["triton_final_response"].bool_param
    finally:
        client.stop_stream()
    print()


def text_of(result: grpc.InferResult) -> str:
    text = result.as_numpy("text_output")
    return "" if text is None or text.size == 0 else text.flat[0].decode("utf-8", "replace")


def tensor(name: str, values: np.ndarray, dtype: str) -> grpc.InferInput:
    made = grpc.InferInput(name, list(values.shape), dtype)
    made.set_data_from_numpy(values)
    return made


if __name__ == "__main__":
    main()
