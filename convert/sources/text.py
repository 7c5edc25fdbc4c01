"""Token ids to calibrate on and to measure with: from a text, a data set, a built-in text, or ready-made ones."""

from __future__ import annotations

import hashlib
import os
from array import array
from dataclasses import dataclass
from pathlib import Path

from ...plugins.lazy import torch
from ..errors import InputError
from ..files.bounded import in_child
from ..files.disk import open_regular, shown_path, text_digest
from ..files.shard import Shard
from ..models.model import Model
from .documents import BUILT_IN, blocks, built_in, documents
from .records import dataset_files
from .tokenizer import Tokenizer

# Characters that are read in the hope of a token; a text of any script has fewer than ten to one.
CHARACTERS_PER_TOKEN, CHARACTERS = 64, 2**22
# What opening a tokenizer may take, and reading a token with the slowest of them.
SECONDS, SECONDS_PER_TOKEN = 60.0, 0.001
# Of larger files the first bytes, the size and the time of change are their identity.
HASHED = 2**30


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
    """The first ``sequences`` pieces of ``length`` tokens of a text, or as many as it has.

    Args:
        source: "pydoc", "pydoc-heldout", a UTF-8 text file, records in a .json, .jsonl, .parquet or .arrow file or a
            folder of them (see documents), or a safetensors file with ``input_ids`` (integers, [sequences, tokens]).
        tokenizer_dir: the Hugging Face folder whose tokenizer reads the text. Where it begins every prompt with a
            token, each piece begins with it.
        vocab_size: rows of the model's embedding.
        flag: the option that named the source, for error messages.

    Raises:
        InputError: no such file, an empty or too short text, records without text, a missing or broken tokenizer, or
            ids beyond the vocabulary.
    """
    check_text(source, sequences, length, flag)
    ready = source.endswith(".safetensors")
    if ready:
        ids = ready_made(Path(source), sequences, length, flag)
    else:
        ids = encoded(source, Tokenizer(tokenizer_dir, flag), sequences, length, flag)
    odd = next((one for one in (int(ids.max()), int(ids.min())) if not 0 <= one < vocab_size), None)
    if odd is not None and ready:
        raise InputError(f"{flag}: {shown_path(source)} holds token id {odd}, outside the vocabulary of {vocab_size}")
    if odd is not None:
        raise InputError(
            f"{shown_path(tokenizer_dir)}: its tokenizer gives token id {odd}, outside the vocabulary of {vocab_size} "
            "that config.json states; are its files another model's?"
        )
    return Tokens(ids, source, hashlib.sha256(ids.numpy().tobytes()).hexdigest())


def check_text(source: str, sequences: int, length: int, flag: str) -> None:
    """Raise InputError for a text that is not there, or no piece of it that is asked for."""
    if sequences < 1 or length < 2:
        raise InputError(f"{flag}: at least 1 sequence of 2 tokens is needed, not {sequences} of {length}")
    if source not in BUILT_IN and not os.path.exists(source):
        raise InputError(f"{flag}: no such file {shown_path(source)}; built-in texts: {', '.join(BUILT_IN)}")


def check_length(model: Model, length: int, flag: str) -> None:
    """Raise InputError for sequences that are longer than the model's."""
    if not model.windows and model.sliding_window is not None and length > model.sliding_window:
        raise InputError(f"{flag} {length} is longer than the model's sliding window of {model.sliding_window} tokens")
    if length > model.longest:
        raise InputError(f"{flag} {length} is longer than the model's {model.longest} positions")


def encoded(source: str, tokenizer: Tokenizer, sequences: int, length: int, flag: str) -> torch.Tensor:
    """The text's tokens in pieces of ``length``, int64; a shorter rest is left out."""

    def work() -> bytes:
        return pieces(source, tokenizer, sequences, length, flag).tobytes()

    blamed = f"{shown_path(tokenizer.folder)}: its tokenizer, reading {flag} {shown_path(source)},"
    seconds = SECONDS + SECONDS_PER_TOKEN * min(sequences * length, 10**8)
    data = in_child(work, seconds, blamed)
    return torch.frombuffer(bytearray(data), dtype=torch.int64).view(-1, length)


def pieces(source: str, tokenizer: Tokenizer, sequences: int, length: int, flag: str) -> array[int]:
    """Tokens of at most ``sequences`` pieces, one after the other; the text is read until there are enough."""
    ids, characters, blank, name = array("q"), 0, True, f"{flag}: {shown_path(source)}"
    for block in blocks(documents(source, name, tokenizer.render)):
        characters += len(block)
        if not block.isspace():
            ids.extend(tokenizer.ids(block))
            blank = False
        if len(ids) >= sequences * length:
            break
        if characters > CHARACTERS + CHARACTERS_PER_TOKEN * sequences * length:
            raise InputError(f"{name} has {len(ids)} tokens in {characters} characters; give text that has more")
    if blank:
        raise InputError(f"{name} is empty")
    if not ids:
        raise InputError(f"{shown_path(tokenizer.folder)}: its tokenizer gives no token for the text of {name}")
    front = tokenizer.front
    share = length - len(front)
    if len(ids) < share:
        raise InputError(
            f"{name} has {len(ids) + len(front)} tokens, less than one sequence of {length}; give a longer text or a "
            "smaller sequence length"
        )
    whole = array("q")
    for start in range(0, min(sequences, len(ids) // share) * share, share):
        whole.extend(front)
        whole.extend(ids[start : start + share])
    return whole


def ready_made(path: Path, sequences: int, length: int, flag: str) -> torch.Tensor:
    """The first ids of a safetensors file, int64 [at most sequences, length]."""
    try:
        shard = Shard(path)
        shape, dtype = shard.forms().get("input_ids", ([], ""))
        if len(shape) != 2 or dtype not in ("I32", "I64") or shape[0] == 0:
            raise InputError(f"{shown_path(path)} needs an integer tensor input_ids [sequences, tokens]")
        if shape[1] < length:
            raise InputError(
                f"{shown_path(path)} has sequences of {shape[1]} tokens, fewer than the {length} asked for"
            )
        ids = shard.read("input_ids", sequences)[:, :length]
    except InputError as error:
        raise InputError(f"{flag}: {error}") from None
    return ids.long().contiguous()


def content_hash(source: str) -> str:
    """What identifies a text: the content of what may be read of it."""
    if source in BUILT_IN:
        return hashlib.sha256(built_in(source).encode()).hexdigest()
    path = Path(source)
    if not os.path.exists(path):
        raise InputError(f"text {shown_path(source)}: no such file; give a file, or one of: {', '.join(BUILT_IN)}")
    if path.is_dir():
        files = dataset_files(path, f"text {shown_path(source)}")
        return text_digest({str(file.relative_to(path)): file_hash(file) for file in files})
    return file_hash(path)


def file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        for _ in range(0, HASHED, 1 << 20):
            digest.update(file.read(1 << 20))
    if status.st_size <= HASHED:
        return digest.hexdigest()
    return text_digest([digest.hexdigest(), status.st_size, status.st_mtime_ns])
