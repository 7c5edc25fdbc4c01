"""What a request to the engine says, read off its tensors: copied beside model.py of a preview."""

from __future__ import annotations

from typing import Any

import numpy as np

from enginesmith.convert.generate.options import COLD
from enginesmith.convert.generate.sampling import Sampling, Words

# Inputs of features that only an engine has; a request that gives one of them more than nothing is refused.
ENGINE_ONLY = (
    "encoder_input_features", "draft_input_ids", "draft_logits", "prompt_embedding_table", "lora_task_id",
    "lora_weights", "lora_config", "context_phase_params", "guided_decoding_guide_type", "guided_decoding_guide",
    "lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size", "runtime_top_p_reset_ids",
)  # fmt: skip
NEUTRAL = {"beam_width": 1, "runtime_top_p_decay": 1.0, "beam_search_diversity_rate": 0.0}


class RequestError(ValueError):
    """What is wrong with a request, in a line for who sent it."""


def refuse_engine_only(tensors: dict[str, np.ndarray]) -> None:
    """Raise RequestError for a request of what a preview has not."""
    for feature in ENGINE_ONLY:
        if feature in tensors and tensors[feature].size and np.any(tensors[feature] != 0):
            raise RequestError(f"{feature}: only an engine has that; a preview executes the checkpoint alone")
    for feature, neutral in NEUTRAL.items():
        if feature in tensors and np.any(tensors[feature] != neutral):
            raise RequestError(f"{feature}: a preview knows {neutral} alone; engines know more")


def sampling(tensors: dict[str, np.ndarray], row: int) -> Sampling:
    """How tokens are chosen: greedily where neither top_k nor top_p is given, as TensorRT-LLM has it."""
    top_k, top_p = int(number(tensors, "runtime_top_k", row, 0)), float(number(tensors, "runtime_top_p", row, 0))
    temperature = float(number(tensors, "temperature", row, 1))
    repetition = float(number(tensors, "repetition_penalty", row, 1))
    seed = max(int(number(tensors, name, row, 0)) for name in ("seed", "random_seed"))
    for name, value, good in (
        ("top_k", top_k, top_k >= 0),
        ("top_p", top_p, 0 <= top_p <= 1),
        ("temperature", temperature, 0 <= temperature < float("inf")),
    ):
        if not good:
            raise RequestError(f"{name} is {value}, which no sampling takes")
    cold = temperature < COLD
    return Sampling(
        1.0 if cold else temperature,
        1 if cold or (top_k, top_p) == (0, 0) else top_k,
        top_p or 1.0,
        seed,
        repetition,
        float(number(tensors, "presence_penalty", row, 0)),
        float(number(tensors, "frequency_penalty", row, 0)),
        max(int(number(tensors, name, row, 0)) for name in ("min_tokens", "min_length")),
    )


def words(tensors: dict[str, np.ndarray], name: str, row: int) -> Words:
    """A row of int32 [2, tokens]: all ids, and below the end of each sequence."""
    if name not in tensors or not tensors[name].size:
        return ()
    ids, ends = tensors[name][row].reshape(2, -1).tolist()
    ends = [end for end in ends if end > 0]
    if any(end > len(ids) for end in ends) or ends != sorted(ends):
        raise RequestError(f"{name}: {ends} are no ends of sequences of {len(ids)} tokens")
    return tuple(tuple(ids[start:end]) for start, end in zip([0, *ends], ends, strict=False) if start < end)


def number(tensors: dict[str, np.ndarray], name: str, row: int, usual: float | None = None) -> Any:
    """A row's number; usual where the request has none."""
    if name in tensors and tensors[name].size > row:
        return tensors[name].reshape(-1)[row]
    if usual is None:
        raise RequestError(f"{name} is missing")
    return usual


def flag(tensors: dict[str, np.ndarray], name: str, usual: bool = False) -> bool:
    """Whether a request says yes to something."""
    return bool(tensors[name].reshape(-1).any()) if name in tensors else usual
