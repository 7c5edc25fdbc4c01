"""Triton's Python backend runs this as preprocessing/1/model.py: text to token ids.

A row of a request is one prompt. Rows are padded on the right; REQUEST_INPUT_LEN says how long each is. A request that
cannot be tokenized is answered with an error of its own, the others in the batch are served.

Parameters: tokenizer_dir; vocab_size of the engine; add_special_tokens, chat (true or false).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenization import encode, is_on, load_tokenizer, spellings, stack, word_list


class RequestError(ValueError):
    """What is wrong with a request, in a line for who sent it."""


class TritonPythonModel:
    """Tokenizer, chat template, stop words, bad words and embedding bias."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        values = {name: value["string_value"] for name, value in parameters.items()}
        self.tokenizer = load_tokenizer(values["tokenizer_dir"])
        self.vocab_size = int(values["vocab_size"])
        self.chat = is_on(values, "chat", "false")
        self.add_special_tokens = is_on(values, "add_special_tokens", "true") and not self.chat
        ends, pads = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        self.end_id = -1 if ends is None else int(ends)
        self.pad_id = int(pads) if pads is not None else max(self.end_id, 0)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        try:
            tensors = [pb_utils.Tensor(name, value) for name, value in self.tokenize(Inputs(request)).items()]
            return pb_utils.InferenceResponse(output_tensors=tensors)
        except RequestError as error:
            return failure(str(error))
        except Exception as error:  # one request must not take the others with it
            return failure(f"preprocessing failed: {type(error).__name__}: {error}")

    def tokenize(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """Every output of a request, its first dimension the rows."""
        prompts = [self.prompt_ids(row[0], "text_input") for row in inputs.texts("QUERY")]
        inputs.rows = rows = len(prompts)
        ends = inputs.numbers("END_ID", np.full((rows, 1), self.end_id, np.int32))
        pads = inputs.numbers("PAD_ID", np.full((rows, 1), self.pad_id, np.int32))
        lengths = inputs.numbers("REQUEST_OUTPUT_LEN", np.zeros((rows, 1), np.int32))
        if lengths.min() < 1:
            raise RequestError(f"max_tokens is {lengths.min()}; at least 1 is needed")
        if inputs.has("DECODER_QUERY"):
            decoder = [self.prompt_ids(row[0], "decoder_text_input") for row in inputs.texts("DECODER_QUERY")]
        else:
            decoder = [row.astype(np.int32) for row in pads]
        outputs = {
            "INPUT_ID": stack(prompts, [self.pad_id]),
            "REQUEST_INPUT_LEN": sizes(prompts),
            "DECODER_INPUT_ID": stack(decoder, [self.pad_id]),
            "REQUEST_DECODER_INPUT_LEN": sizes(decoder),
            "BAD_WORDS_IDS": self.word_ids(inputs.texts("BAD_WORDS_DICT"), rows),
            "STOP_WORDS_IDS": self.word_ids(inputs.texts("STOP_WORDS_DICT"), rows),
            "EMBEDDING_BIAS": self.embedding_bias(inputs, rows),
            "REQUEST_OUTPUT_LEN": lengths.astype(np.int32),
            "OUT_END_ID": ends.astype(np.int32),
            "OUT_PAD_ID": pads.astype(np.int32),
        }
        if inputs.has("PROMPT_TABLE_EXTRA_ID"):
            extra = inputs.numbers("PROMPT_TABLE_EXTRA_ID", np.zeros((rows, 1), np.uint64))
            virtual = outputs["INPUT_ID"] >= self.vocab_size
            outputs["OUT_PROMPT_TABLE_EXTRA_IDS"] = np.where(virtual, extra, 0).astype(np.uint64)
        return outputs

    def prompt_ids(self, text: str, name: str) -> np.ndarray:
        """int32 [tokens], never empty: an empty prompt is the tokenizer's BOS token, or an error if it has none."""
        if self.chat and name == "text_input":
            text = self.render(text)
        ids = encode(self.tokenizer, text, self.add_special_tokens)
        if not ids and self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id]
        if not ids:
            raise RequestError(f"{name} is empty, and the tokenizer has no BOS token to begin with")
        return np.array(ids, np.int32)

    def render(self, text: str) -> str:
        """The chat template's text for a JSON list of messages, or for plain text as the user's one message."""
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                messages(text), tokenize=False, add_generation_prompt=True
            )
        except RequestError:
            raise
        except Exception as error:  # templates refuse conversations with errors of their own
            raise RequestError(f"text_input: the chat template refuses it ({error})") from error
        return rendered

    def word_ids(self, words: list[list[str]] | None, rows: int) -> np.ndarray:
        """int32 [rows, 2, tokens]: every spelling of every word; [rows, 2, 0] if there is none."""
        if words is None:
            return np.empty((rows, 2, 0), np.int32)
        lists = [[ids for word in row for ids in spellings(self.tokenizer, word)] for row in words]
        table: np.ndarray = stack([word_list(row) for row in lists], [0, -1])
        return table

    def embedding_bias(self, inputs: Inputs, rows: int) -> np.ndarray:
        """float32 [rows, vocab_size]: each word's weight on its tokens, whatever spelling; [rows, 0] if unused."""
        words = inputs.texts("EMBEDDING_BIAS_WORDS")
        weights = inputs.array("EMBEDDING_BIAS_WEIGHTS")
        if words is None and weights is None:
            return np.empty((rows, 0), np.float32)
        if words is None or weights is None or weights.shape != (rows, len(words[0])):
            raise RequestError("embedding_bias_words and embedding_bias_weights must have one weight for each word")
        bias = np.zeros((rows, self.vocab_size), np.float32)
        for row, row_words, row_weights in zip(bias, words, weights, strict=True):
            for word, weight in zip(row_words, row_weights, strict=True):
                for i in {i for ids in spellings(self.tokenizer, word) for i in ids if i < self.vocab_size}:
                    row[i] += weight
        return bias


class Inputs:
    """A request's tensors, checked as they are asked for."""

    def __init__(self, request: Any):
        self.request = request
        self.rows: int | None = None

    def array(self, name: str) -> np.ndarray | None:
        tensor = pb_utils.get_input_tensor_by_name(self.request, name)
        if tensor is None:
            return None
        value: np.ndarray = tensor.as_numpy()
        if value.ndim != 2 or (self.rows is not None and len(value) != self.rows) or len(value) == 0:
            rows = "rows" if self.rows is None else self.rows
            raise RequestError(f"{name} has shape {list(value.shape)}; [{rows}, ...] is needed, as text_input's rows")
        return value

    def has(self, name: str) -> bool:
        return self.array(name) is not None

    def numbers(self, name: str, default: np.ndarray) -> np.ndarray:
        """[rows, 1]"""
        value = self.array(name)
        if value is not None and value.shape[1] != 1:
            raise RequestError(f"{name} has shape {list(value.shape)}; one number a row is needed")
        return default if value is None else value

    def texts(self, name: str) -> Any:
        """Rows of strings; None if the request has no such tensor."""
        value = self.array(name)
        if value is None:
            return None
        if name.endswith("QUERY") and value.shape[1] != 1:
            raise RequestError(f"{name} has shape {list(value.shape)}; one text a row is needed")
        try:
            return [[item if isinstance(item, str) else bytes(item).decode("utf-8") for item in row] for row in value]
        except UnicodeDecodeError as error:
            raise RequestError(f"{name} is not UTF-8 text ({error})") from None


def messages(text: str) -> list[dict[str, str]]:
    """A JSON list of {"role", "content"} as it is; any other text as one message of the user."""
    try:
        value = json.loads(text) if text.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) and "role" in item for item in value):
        return [{"role": "user", "content": text}]
    for item in value:
        if not isinstance(item["role"], str) or not isinstance(item.get("content"), str):
            raise RequestError('text_input: each message needs "role" and "content", both strings')
    return value


def sizes(rows: Sequence[np.ndarray]) -> np.ndarray:
    """int32 [rows, 1]"""
    return np.array([[len(row)] for row in rows], np.int32)


def failure(message: str) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message))
