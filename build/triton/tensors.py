"""The tensors of every model in the repository, and how the ensemble connects them.

They are the interface of TensorRT-LLM's Triton backend. Where its releases differ, a tensor says which of them have it.
Tensors of vision models are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

Release = tuple[int, int]

OLDEST: Release = (0, 16)
NEWEST: Release = (1, 3)  # its release candidates are the last that have an engine backend
BOOL, FP16, FP32, INT32, INT64, STRING, UINT8, UINT64 = (
    "BOOL", "FP16", "FP32", "INT32", "INT64", "STRING", "UINT8", "UINT64",
)  # fmt: skip
# Types that depend on the engine.
LOGITS, PROMPT = "logits", "prompt"


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        name: as Triton knows it.
        dtype: Triton's type without TYPE_, or LOGITS or PROMPT.
        dims: without the batch dimension; -1 is any size.
        optional: a request may leave it out (inputs only).
        squeezed: the model sees one number a row, shape [batch] instead of [batch, 1].
        ragged: rows of different sizes may share a batch.
        since, until: the first and last release that have it.
    """

    name: str
    dtype: str
    dims: tuple[int, ...] = (1,)
    optional: bool = True
    squeezed: bool = False
    ragged: bool = False
    since: Release = OLDEST
    until: Release = NEWEST

    def exists(self, release: Release) -> bool:
        return self.since <= release <= self.until


@dataclass(frozen=True)
class Step:
    """A model of the ensemble: its tensor -> the ensemble's tensor."""

    model: str
    inputs: dict[str, str]
    outputs: dict[str, str]


def required(tensor: Tensor) -> Tensor:
    return replace(tensor, optional=False)


def numbers(dtype: str, *names: str, since: Release = OLDEST, until: Release = NEWEST) -> list[Tensor]:
    """One number a row, [batch, 1] for clients and [batch] for the model."""
    return [Tensor(name, dtype, squeezed=True, since=since, until=until) for name in names]


def ragged(name: str, dtype: str, *dims: int, since: Release = OLDEST) -> Tensor:
    return Tensor(name, dtype, dims, ragged=True, since=since)


def outputs(dtype: str, *names: str, since: Release = OLDEST) -> list[Tensor]:
    return [Tensor(name, dtype, since=since) for name in names]


# Requests about what to return; each release knows its own.
RETURNS = (
    Tensor("return_log_probs", BOOL),
    Tensor("return_context_logits", BOOL),
    Tensor("return_generation_logits", BOOL),
    Tensor("return_kv_cache_reuse_stats", BOOL, until=(0, 18)),
    Tensor("return_perf_metrics", BOOL, since=(0, 19)),
    Tensor("return_num_input_tokens", BOOL, since=(1, 0)),
    Tensor("return_num_output_tokens", BOOL, since=(1, 0)),
)

# What the engine tells beside the tokens.
RESULTS = (
    Tensor("cum_log_probs", FP32, (-1,)),
    Tensor("output_log_probs", FP32, (-1, -1)),
    Tensor("context_logits", LOGITS, (-1, -1)),
    Tensor("generation_logits", LOGITS, (-1, -1, -1)),
    *outputs(INT32, "batch_index", "sequence_index"),
    *outputs(INT32, "kv_cache_alloc_new_blocks", "kv_cache_reused_blocks", "kv_cache_alloc_total_blocks"),
    *outputs(
        INT64, "arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns", since=(0, 19)
    ),
    *outputs(FP32, "acceptance_rate", since=(0, 19)),
    *outputs(INT32, "total_accepted_draft_tokens", "total_draft_tokens", since=(0, 19)),
    *outputs(INT32, "num_input_tokens", "num_output_tokens", since=(1, 0)),
)

ENGINE_INPUTS = (
    ragged("input_ids", INT32, -1),
    *map(required, numbers(INT32, "input_lengths", "request_output_len")),
    ragged("encoder_input_features", FP16, -1, -1),
    *numbers(INT32, "encoder_output_lengths", "num_return_sequences"),
    ragged("draft_input_ids", INT32, -1),
    ragged("draft_logits", LOGITS, -1, -1),
    *numbers(FP32, "draft_acceptance_threshold"),
    ragged("decoder_input_ids", INT32, -1),
    *numbers(INT32, "decoder_input_lengths", "end_id", "pad_id"),
    ragged("stop_words_list", INT32, 2, -1),
    ragged("bad_words_list", INT32, 2, -1),
    ragged("embedding_bias", FP32, -1),
    *numbers(INT32, "beam_width", "runtime_top_k", "runtime_top_p_reset_ids"),
    *numbers(FP32, "temperature", "runtime_top_p", "runtime_top_p_min", "runtime_top_p_decay", "len_penalty"),
    *numbers(FP32, "beam_search_diversity_rate", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *numbers(INT32, "min_length", until=(0, 19)),
    *numbers(INT32, "min_tokens", since=(0, 20)),
    *numbers(UINT64, "random_seed", until=(0, 19)),
    *numbers(UINT64, "seed", since=(0, 20)),
    *(replace(tensor, squeezed=True) for tensor in RETURNS),
    *numbers(BOOL, "early_stopping", "exclude_input_in_output", "stop", "streaming"),
    ragged("prompt_embedding_table", PROMPT, -1, -1),
    ragged("prompt_table_extra_ids", UINT64, -1),
    *numbers(INT32, "prompt_vocab_size"),
    *numbers(UINT64, "lora_task_id"),
    ragged("lora_weights", FP16, -1, -1),
    ragged("lora_config", INT32, -1, 3),
    ragged("context_phase_params", UINT8, -1),
    ragged("retention_token_range_starts", INT32, -1, since=(0, 17)),
    ragged("retention_token_range_ends", INT32, -1, since=(0, 17)),
    ragged("retention_token_range_priorities", INT32, -1, since=(0, 17)),
    ragged("retention_token_range_durations_ms", INT32, -1, since=(0, 17)),
    ragged("retention_decode_priority", INT32, 1, since=(0, 17)),
    ragged("retention_decode_duration_ms", INT32, 1, since=(0, 17)),
    ragged("guided_decoding_guide_type", STRING, 1, since=(0, 19)),
    ragged("guided_decoding_guide", STRING, 1, since=(0, 19)),
    ragged("lookahead_window_size", INT32, 1, since=(0, 19)),
    ragged("lookahead_ngram_size", INT32, 1, since=(0, 19)),
    ragged("lookahead_verification_set_size", INT32, 1, since=(0, 19)),
)
ENGINE_OUTPUTS = (
    Tensor("output_ids", INT32, (-1, -1)),
    Tensor("sequence_length", INT32, (-1,)),
    *RESULTS,
    Tensor("context_phase_params", UINT8, (-1,)),
)

PREPROCESSING_INPUTS = (
    required(Tensor("QUERY", STRING)),
    Tensor("DECODER_QUERY", STRING),
    required(Tensor("REQUEST_OUTPUT_LEN", INT32)),
    Tensor("BAD_WORDS_DICT", STRING, (-1,)),
    Tensor("STOP_WORDS_DICT", STRING, (-1,)),
    Tensor("EMBEDDING_BIAS_WORDS", STRING, (-1,)),
    Tensor("EMBEDDING_BIAS_WEIGHTS", FP32, (-1,)),
    Tensor("END_ID", INT32),
    Tensor("PAD_ID", INT32),
    Tensor("PROMPT_TABLE_EXTRA_ID", UINT64),
)
PREPROCESSING_OUTPUTS = (
    Tensor("INPUT_ID", INT32, (-1,)),
    Tensor("REQUEST_INPUT_LEN", INT32),
    Tensor("DECODER_INPUT_ID", INT32, (-1,)),
    Tensor("REQUEST_DECODER_INPUT_LEN", INT32),
    Tensor("BAD_WORDS_IDS", INT32, (2, -1)),
    Tensor("STOP_WORDS_IDS", INT32, (2, -1)),
    Tensor("EMBEDDING_BIAS", FP32, (-1,)),
    Tensor("REQUEST_OUTPUT_LEN", INT32, (-1,)),
    Tensor("OUT_END_ID", INT32),
    Tensor("OUT_PAD_ID", INT32),
    Tensor("OUT_PROMPT_TABLE_EXTRA_IDS", UINT64, (-1,)),
)

POSTPROCESSING_INPUTS = (
    required(Tensor("TOKENS_BATCH", INT32, (-1, -1))),
    required(Tensor("SEQUENCE_LENGTH", INT32, (-1,))),
)
POSTPROCESSING_OUTPUTS = (Tensor("OUTPUT", STRING, (-1,)),)

# Text in, text out: the ensemble and the BLS model have the same face.
TEXT_INPUTS = (
    required(Tensor("text_input", STRING)),
    Tensor("decoder_text_input", STRING),
    required(Tensor("max_tokens", INT32)),
    Tensor("num_return_sequences", INT32),
    Tensor("bad_words", STRING, (-1,)),
    Tensor("stop_words", STRING, (-1,)),
    Tensor("exclude_input_in_output", BOOL),
    Tensor("end_id", INT32),
    Tensor("pad_id", INT32),
    Tensor("top_k", INT32),
    Tensor("top_p", FP32),
    Tensor("temperature", FP32),
    Tensor("length_penalty", FP32),
    Tensor("repetition_penalty", FP32),
    Tensor("presence_penalty", FP32),
    Tensor("frequency_penalty", FP32),
    Tensor("min_length", INT32, until=(0, 19)),
    Tensor("min_tokens", INT32, since=(0, 20)),
    Tensor("random_seed", UINT64, until=(0, 19)),
    Tensor("seed", UINT64, since=(0, 20)),
    *RETURNS,
    Tensor("beam_width", INT32),
    Tensor("stream", BOOL),
    Tensor("prompt_embedding_table", PROMPT, (-1, -1)),
    Tensor("prompt_table_extra_id", UINT64),
    Tensor("prompt_vocab_size", INT32),
    Tensor("embedding_bias_words", STRING, (-1,)),
    Tensor("embedding_bias_weights", FP32, (-1,)),
    Tensor("lora_task_id", UINT64),
    ragged("lora_weights", FP16, -1, -1),
    ragged("lora_config", INT32, -1, 3),
    ragged("guided_decoding_guide_type", STRING, 1, since=(0, 19)),
    ragged("guided_decoding_guide", STRING, 1, since=(0, 19)),
)
TEXT_OUTPUTS = (Tensor("text_output", STRING, (-1,)), *RESULTS)

PREPROCESSING_STEP = Step(
    "preprocessing",
    {
        "QUERY": "text_input",
        "DECODER_QUERY": "decoder_text_input",
        "REQUEST_OUTPUT_LEN": "max_tokens",
        "BAD_WORDS_DICT": "bad_words",
        "STOP_WORDS_DICT": "stop_words",
        "EMBEDDING_BIAS_WORDS": "embedding_bias_words",
        "EMBEDDING_BIAS_WEIGHTS": "embedding_bias_weights",
        "END_ID": "end_id",
        "PAD_ID": "pad_id",
        "PROMPT_TABLE_EXTRA_ID": "prompt_table_extra_id",
    },
    {
        "INPUT_ID": "_INPUT_ID",
        "REQUEST_INPUT_LEN": "_REQUEST_INPUT_LEN",
        "DECODER_INPUT_ID": "_DECODER_INPUT_ID",
        "REQUEST_DECODER_INPUT_LEN": "_REQUEST_DECODER_INPUT_LEN",
        "BAD_WORDS_IDS": "_BAD_WORDS_IDS",
        "STOP_WORDS_IDS": "_STOP_WORDS_IDS",
        "EMBEDDING_BIAS": "_EMBEDDING_BIAS",
        "REQUEST_OUTPUT_LEN": "_REQUEST_OUTPUT_LEN",
        "OUT_END_ID": "_PREPROCESSOR_END_ID",
        "OUT_PAD_ID": "_PREPROCESSOR_PAD_ID",
        "OUT_PROMPT_TABLE_EXTRA_IDS": "_OUT_PROMPT_TABLE_EXTRA_IDS",
    },
)
# The engine's inputs that do not come from a text input of the same name.
ENGINE_SOURCES = {
    "input_ids": "_INPUT_ID",
    "input_lengths": "_REQUEST_INPUT_LEN",
    "decoder_input_ids": "_DECODER_INPUT_ID",
    "decoder_input_lengths": "_REQUEST_DECODER_INPUT_LEN",
    "request_output_len": "_REQUEST_OUTPUT_LEN",
    "end_id": "_PREPROCESSOR_END_ID",
    "pad_id": "_PREPROCESSOR_PAD_ID",
    "stop_words_list": "_STOP_WORDS_IDS",
    "bad_words_list": "_BAD_WORDS_IDS",
    "embedding_bias": "_EMBEDDING_BIAS",
    "prompt_table_extra_ids": "_OUT_PROMPT_TABLE_EXTRA_IDS",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "len_penalty": "length_penalty",
    "streaming": "stream",
}
POSTPROCESSING_STEP = Step(
    "postprocessing",
    {"TOKENS_BATCH": "_TOKENS_BATCH", "SEQUENCE_LENGTH": "_SEQUENCE_LENGTH"},
    {"OUTPUT": "text_output"},
)


def of_release(tensors: Iterable[Tensor], release: Release, logits: str, prompt: str) -> list[Tensor]:
    """A release's tensors, with the engine's types filled in.

    Args:
        release: of the TensorRT-LLM that built the engine, OLDEST to NEWEST.
        logits: "FP32" or "FP16".
        prompt: "FP16", "BF16" or "FP32".
    """
    types = {LOGITS: logits, PROMPT: prompt}
    return [
        replace(tensor, dtype=types.get(tensor.dtype, tensor.dtype)) for tensor in tensors if tensor.exists(release)
    ]


def ensemble_steps(release: Release) -> list[Step]:
    """Text to tokens, tokens to tokens, tokens to text."""
    text_names = {tensor.name for tensor in TEXT_INPUTS}
    inputs = {
        tensor.name: ENGINE_SOURCES.get(tensor.name, tensor.name)
        for tensor in ENGINE_INPUTS
        if tensor.exists(release) and (tensor.name in ENGINE_SOURCES or tensor.name in text_names)
    }
    results = {tensor.name: tensor.name for tensor in RESULTS if tensor.exists(release)}
    tokens = {"output_ids": "_TOKENS_BATCH", "sequence_length": "_SEQUENCE_LENGTH"}
    return [PREPROCESSING_STEP, Step("tensorrt_llm", inputs, tokens | results), POSTPROCESSING_STEP]
