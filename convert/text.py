"""Token ids to calibrate on and to measure with: a text file, a built-in text, or ready-made ids."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .errors import InputError

# Every Python carries its own reference topics; the first half calibrates, the second is held out.
BUILT_IN = ("pydoc", "pydoc-heldout")


@dataclass(frozen=True)
class Tokens:
    """Equal pieces of a text.

    Attributes:
        ids: int64 [sequences, tokens].
        name: where they come from.
        sha256: of the ids, so that a manifest says which data was used.
    """

    ids: torch.Tensor
    name: str
    sha256: str


def read_tokens(source: str, tokenizer_dir: Path, sequences: int, length: int, vocab_size: int, flag: str) -> Tokens:
    """The first ``sequences`` pieces of ``length`` tokens of a text.

    Args:
        source: "pydoc", "pydoc-heldout", a UTF-8 text file, or a safetensors file with ``input_ids``
            (integers, [sequences, tokens]).
        tokenizer_dir: the Hugging Face folder whose tokenizer reads the text.
        flag: the option that named the source, for error messages.

    Raises:
        InputError: no such file, an empty or too short text, a missing tokenizer, or ids beyond the vocabulary.
    """
    if sequences < 1 or length < 2:
        raise InputError(f"{flag}: at least 1 sequence of 2 tokens is needed, not {sequences} of {length}")
    ids = ready_made(Path(source), length, flag) if source.endswith(".safetensors") else encoded(
        text_of(source, flag), source, tokenizer_dir, length, flag
    )  # fmt: skip
    ids = ids[:sequences].contiguous()
    if int(ids.max()) >= vocab_size or int(ids.min()) < 0:
        raise InputError(f"{flag}: {source} holds token ids outside the vocabulary of {vocab_size}")
    return Tokens(ids, source, hashlib.sha256(ids.numpy().tobytes()).hexdigest())


def text_of(source: str, flag: str) -> str:
    if source in BUILT_IN:
        return built_in(source)
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{flag}: no such file {source}; built-in texts: {', '.join(BUILT_IN)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag}: {source} is not readable as UTF-8 text ({error})") from None
    if not text.strip():
        raise InputError(f"{flag}: {source} is empty")
    return text


def built_in(name: str) -> str:
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[key] for key in sorted(topics))
    half = len(text) // 2
    return text[:half] if name == "pydoc" else text[half:]


def encoded(text: str, source: str, tokenizer_dir: Path, length: int, flag: str) -> torch.Tensor:
    """The text's tokens without special ones, in pieces of ``length``; a shorter rest is left out."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds, all of them meaning the same
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{tokenizer_dir}: no usable tokenizer for {flag} ({reason}); add tokenizer.json, or give token ids in a "
            "safetensors file"
        ) from None
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) < length:
        raise InputError(
            f"{flag}: {source} has {len(ids)} tokens, less than one sequence of {length}; "
            "give a longer text or a smaller sequence length"
        )
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def ready_made(path: Path, length: int, flag: str) -> torch.Tensor:
    try:
        ids = load_file(path).get("input_ids")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{flag}: {path} is not readable as safetensors ({error})") from None
    if ids is None or ids.dim() != 2 or ids.dtype not in (torch.int32, torch.int64) or ids.shape[0] == 0:
        raise InputError(f"{flag}: {path} needs an integer tensor input_ids [sequences, tokens]")
    if ids.shape[1] < length:
        raise InputError(f"{flag}: {path} has sequences of {ids.shape[1]} tokens, fewer than the {length} asked for")
    return ids[:, :length].long()
