"""Triton's Python backend runs this as preprocessing/1/model.py: text to token ids.

A row of a request is one prompt. Rows are padded on the right; REQUEST_INPUT_LEN says how long each is. A request that
cannot be tokenized is answered with an error of its own, the others in the batch are served.

Of several end tokens the first is the engine's end_id, the others are stop words of every request. A request's own
END_ID stands instead of all of them; its own stop words are looked for besides.

Parameters: tokenizer_dir; vocab_size of the engine; end_ids, with commas, and pad_id; add_special_tokens, chat (true or
false); what a request may ask for: max_prompt_bytes of each prompt, max_words and max_word_bytes of all stop words, bad
words and bias words together, max_seconds until it is tokenized.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from chat import ChatError, chat_of, render
from loading import load_tokenizer
from tokenization import encode, is_on, spellings, stack, word_list

# The ensemble's names for tensors that hold text, which clients know.
CLIENT_NAMES = {
    "QUERY": "text_input",
    "DECODER_QUERY": "decoder_text_input",
    "STOP_WORDS_DICT": "stop_words",
    "BAD_WORDS_DICT": "bad_words",
    "EMBEDDING_BIAS_WORDS": "embedding_bias_words",
}
PROMPTS = ("QUERY", "DECODER_QUERY")
# What a request may ask for where the parameters do not say.
LIMITS = {"max_prompt_bytes": 2**16, "max_words": 1024, "max_word_bytes": 2**16, "max_seconds": 30}
LONGEST_MESSAGE = 400  # characters of an error


class RequestError(ValueError):
    """What is wrong with a request, in a line for who sent it."""


class TritonPythonModel:
    """Tokenizer, chat template, end tokens, stop words, bad words and embedding bias."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        values = {name: value["string_value"] for name, value in parameters.items()}
        self.tokenizer = load_tokenizer(values["tokenizer_dir"])
        self.vocab_size = int(values["vocab_size"])
        self.chat = is_on(values, "chat", "false")
        self.add_special_tokens = is_on(values, "add_special_tokens", "true")
        self.limits = {name: int(values.get(name) or usual) for name, usual in LIMITS.items()}
        own_end, own_pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        ends = [int(i) for i in values.get("end_ids", "").split(",") if i.strip()]
        self.end_id, *self.more_ends = ends or [-1 if own_end is None else int(own_end)]
        pad = int(values["pad_id"]) if values.get("pad_id") else own_pad
        self.pad_id = int(pad) if pad is not None and pad < self.vocab_size else max(self.end_id, 0)
        self.bos_id = self.tokenizer.bos_token_id
        self.begins = self.bos_id is not None and encode(self.tokenizer, "a", True)[:1] == [self.bos_id]

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        """The response to one request, which must not take the others with it."""
        try:
            tensors = [
                pb_utils.Tensor(name, value) for name, value in self.tokenize(Inputs(request, self.limits)).items()
            ]
            return pb_utils.InferenceResponse(output_tensors=tensors)
        except RequestError as error:
            return failure(str(error))
        except BaseException as error:  # the tokenizer's library panics with one that is no Exception
            return failure(f"preprocessing failed: {type(error).__name__}: {error}")

    def tokenize(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """Every output of a request, its first dimension the rows."""
        prompts = [self.prompt_ids(row[0], "QUERY", inputs) for row in inputs.texts("QUERY")]
        inputs.rows = rows = len(prompts)
        ends = inputs.ids("END_ID", np.full((rows, 1), self.end_id, np.int32), self.vocab_size)
        pads = inputs.ids("PAD_ID", np.full((rows, 1), self.pad_id, np.int32), self.vocab_size)
        lengths = inputs.numbers("REQUEST_OUTPUT_LEN", np.zeros((rows, 1), np.int32))
        if lengths.min() < 1:
            raise RequestError(f"max_tokens is {lengths.min()}; at least 1 is needed")
        if inputs.has("DECODER_QUERY"):
            decoder = [self.prompt_ids(row[0], "DECODER_QUERY", inputs) for row in inputs.texts("DECODER_QUERY")]
        else:
            decoder = [row.astype(np.int32) for row in pads]
        more_ends = [] if inputs.has("END_ID") else [[i] for i in self.more_ends]
        outputs = {
            "INPUT_ID": stack(prompts, [self.pad_id]),
            "REQUEST_INPUT_LEN": sizes(prompts),
            "DECODER_INPUT_ID": stack(decoder, [self.pad_id]),
            "REQUEST_DECODER_INPUT_LEN": sizes(decoder),
            "BAD_WORDS_IDS": self.word_ids("BAD_WORDS_DICT", inputs, []),
            "STOP_WORDS_IDS": self.word_ids("STOP_WORDS_DICT", inputs, more_ends),
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

    def prompt_ids(self, text: str, name: str, inputs: Inputs) -> np.ndarray:
        """int32 [tokens], never empty: an empty prompt is the tokenizer's BOS token, or an error if it has none.

        Where the tokenizer begins texts with BOS there is exactly one, whether the text or the template has it or not.
        """
        asked, templated = CLIENT_NAMES[name], self.chat and name == "QUERY"
        if templated:
            text = self.render(text)
            if self.bos_id is not None and text.lstrip().startswith(self.tokenizer.bos_token):
                text = text.lstrip()  # what a template leaves before the BOS that it writes
            inputs.check_size(name, len(text.encode("utf-8", "replace")))
        ids = encode(self.tokenizer, text, self.add_special_tokens and not templated)
        inputs.check_time()
        if self.add_special_tokens and self.begins:
            ids = [self.bos_id, *ids[next((i for i, token in enumerate(ids) if token != self.bos_id), len(ids)) :]]
        if not ids and self.bos_id is not None:
            ids = [self.bos_id]
        if not ids:
            raise RequestError(f"{asked} is empty, and the tokenizer has no BOS token to begin with")
        if max(ids) >= self.vocab_size and not inputs.has("PROMPT_TABLE_EXTRA_ID"):
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise RequestError(f"{asked} has {token!r}, id {max(ids)}; the engine knows those below {self.vocab_size}")
        return np.array(ids, np.int32)

    def render(self, text: str) -> str:
        """The chat template's text for a chat in JSON, or for plain text as the user's one message."""
        try:
            rendered: str = render(self.tokenizer, chat_of(text))
        except ChatError as error:
            raise RequestError(f"text_input: {error}") from None
        except Exception as error:  # templates refuse conversations with errors of their own
            raise RequestError(f"text_input: the chat template refuses it ({error})") from error
        return rendered

    def word_ids(self, name: str, inputs: Inputs, always: list[list[int]]) -> np.ndarray:
        """int32 [rows, 2, tokens]: every spelling of every word, and what is always there; [rows, 2, 0] if none is."""
        words = inputs.texts(name) or [[]] * (inputs.rows or 0)
        lists = [[ids for word in row for ids in self.spellings(word, inputs)] + always for row in words]
        table: np.ndarray = stack([word_list(row) for row in lists], [0, -1])
        return table

    def spellings(self, word: str, inputs: Inputs) -> list[list[int]]:
        """The token sequences of a word that the engine can say."""
        inputs.check_time()
        return [ids for ids in spellings(self.tokenizer, word) if max(ids) < self.vocab_size]

    @np.errstate(over="ignore", invalid="ignore")
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
                for i in {i for ids in self.spellings(word, inputs) for i in ids}:
                    row[i] += weight
        if np.isnan(bias).any():
            raise RequestError("embedding_bias_weights are, or add up to, no number")
        return bias


class Inputs:
    """A request's tensors, checked as they are asked for, and what it may still ask for."""

    def __init__(self, request: Any, limits: dict[str, int]):
        self.request, self.limits = request, limits
        self.rows: int | None = None
        self.words = self.word_bytes = 0
        self.until = time.monotonic() + limits["max_seconds"]

    def check_time(self) -> None:
        if time.monotonic() > self.until:
            raise RequestError(f"not tokenized within {self.limits['max_seconds']} s; send less at once")

    def check_size(self, name: str, size: int) -> None:
        if size > self.limits["max_prompt_bytes"]:
            most = f"at most {self.limits['max_prompt_bytes']} are taken"
            raise RequestError(f"{CLIENT_NAMES[name]} has {size} bytes; {most} (max_prompt_bytes of preprocessing)")

    def count_words(self, name: str, items: list[bytes]) -> None:
        """Add to the words of the request, which have a limit together."""
        self.words += len(items)
        self.word_bytes += sum(map(len, items))
        for limit, value in (("max_words", self.words), ("max_word_bytes", self.word_bytes)):
            if value > self.limits[limit]:
                what = f"at most {self.limits[limit]} of stop, bad and bias words are taken"
                raise RequestError(f"{CLIENT_NAMES[name]}: {value} {limit[4:]}; {what} ({limit} of preprocessing)")

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

    def ids(self, name: str, default: np.ndarray, vocab_size: int) -> np.ndarray:
        """[rows, 1] of token ids that the engine knows; -1 is none."""
        value = self.numbers(name, default)
        if value.max() >= vocab_size:
            raise RequestError(f"{name.lower()} is {value.max()}; the engine knows ids below {vocab_size}")
        if value.min() < -1:
            raise RequestError(f"{name.lower()} is {value.min()}; an id, or -1 for none, is needed")
        return value

    def texts(self, name: str) -> Any:
        """Rows of strings; None if the request has no such tensor."""
        value = self.array(name)
        if value is None:
            return None
        if name in PROMPTS and value.shape[1] != 1:
            raise RequestError(f"{name} has shape {list(value.shape)}; one text a row is needed")
        rows = [[item.encode("utf-8") if isinstance(item, str) else bytes(item) for item in row] for row in value]
        if name in PROMPTS:
            self.check_size(name, max(len(row[0]) for row in rows))
        else:
            self.count_words(name, [item for row in rows for item in row])
        try:
            return [[item.decode("utf-8") for item in row] for row in rows]
        except UnicodeDecodeError as error:
            raise RequestError(f"{name} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def sizes(rows: Sequence[np.ndarray]) -> np.ndarray:
    """int32 [rows, 1]"""
    return np.array([[len(row)] for row in rows], np.int32)


def failure(message: str) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message[:LONGEST_MESSAGE]))
