"""Triton's Python backend runs this as postprocessing/1/model.py: token ids to text.

It remembers nothing between calls. A whole answer comes out as the tokenizer decodes it. In a decoupled ensemble a
streamed answer arrives one token a call: then a leading space is kept, and a character that is split over several
tokens comes out as U+FFFD. The model tensorrt_llm_bls streams text without this limit.

Parameters: tokenizer_dir; skip_special_tokens, decoupled (true or false).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from loading import load_tokenizer
from tokenization import decode, decode_piece, is_on

LONGEST_MESSAGE = 400  # characters of an error


class TritonPythonModel:
    """Detokenizer for whole answers and, as well as it can be done, for single tokens."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        values = {name: value["string_value"] for name, value in parameters.items()}
        self.tokenizer = load_tokenizer(values["tokenizer_dir"])
        self.skip_special_tokens = is_on(values, "skip_special_tokens", "true")
        self.decoupled = is_on(values, "decoupled", "false")

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        try:
            tokens = pb_utils.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
            lengths = pb_utils.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
            return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("OUTPUT", self.texts(tokens, lengths))])
        except BaseException as error:  # one request must not take the others with it, nor must a library's panic
            message = f"postprocessing failed: {type(error).__name__}: {error}"[:LONGEST_MESSAGE]
            return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message))

    def texts(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """UTF-8 [rows, beams] of the first lengths [rows, beams] of tokens [rows, beams, length]."""
        if tokens.ndim != 3 or lengths.shape != tokens.shape[:2]:
            shapes = f"{list(tokens.shape)} and {list(lengths.shape)}"
            raise ValueError(f"TOKENS_BATCH and SEQUENCE_LENGTH have shapes {shapes}, not [b, w, n] and [b, w]")
        texts = np.empty(lengths.shape, np.object_)
        for index in np.ndindex(lengths.shape):
            texts[index] = self.text(tokens[index][: max(int(lengths[index]), 0)]).encode("utf-8", "replace")
        return texts

    def text(self, ids: np.ndarray) -> str:
        streamed = self.decoupled and len(ids) == 1
        text: str = (decode_piece if streamed else decode)(self.tokenizer, ids, self.skip_special_tokens)
        return text
