"""Tokenizer folders, which may be anybody's: opened without running code from them, and never without limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...convert.errors import InputError

SIZE_LIMIT = 256 * 2**20
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", "vocab.txt",
    "config.json",
)  # fmt: skip


def tokenizer_files(folder: Path) -> list[Path]:
    """What belongs to the tokenizer; a model's folder holds its weights too."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def open_tokenizer(folder: Path, flag: str) -> Any:
    """The tokenizer of a folder, without running code from it.

    Raises:
        InputError: it does not load.
    """
    if not folder.is_dir():
        raise InputError(f"{flag}: {folder} is not a folder")
    from transformers.utils import logging

    from .models.tokenization import load_tokenizer

    logging.set_verbosity_error()
    try:
        return load_tokenizer(str(folder))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # many kinds, a panic of the Rust library among them, all meaning the same
        raise InputError(
            f"{flag}: no usable tokenizer in {folder} ({first_line(error)}); tokenizer.json is needed"
        ) from None


def largest_id(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab().values(), default=-1)


def check_chat(tokenizer: Any, folder: str) -> None:
    """Raise InputError unless the chat template renders a user's message; templates run in Jinja's sandbox."""
    if not tokenizer.chat_template:
        raise InputError(f"--chat: the tokenizer in {folder} has no chat template; leave --chat out")
    message = {"role": "user", "content": "hello"}
    try:
        tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may raise whatever it likes
        raise InputError(f"--chat: the chat template in {folder} does not render ({first_line(error)})") from None


def refuse_odd_files(folder: Path, owner: str) -> None:
    """Raise InputError for what no tokenizer has: huge files, pipes, devices."""
    for path in folder.glob("*"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{owner}: tokenizer_dir {folder}: {path.name} is not a regular file")
    for path in tokenizer_files(folder):
        if path.stat().st_size > SIZE_LIMIT:
            raise InputError(f"{owner}: tokenizer_dir {folder}: {path.name} is too large for a tokenizer")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
