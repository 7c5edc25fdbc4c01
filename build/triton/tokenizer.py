"""Tokenizer folders, which may be anybody's: opened without running code from them, and never without limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...convert.errors import InputError, reason
from ...convert.files.bounded import in_child
from ...convert.sources.tokenizer import refuse_odd_files

# What rendering one short message may take.
RENDER_SECONDS, RENDER_BYTES = 10, 512 * 2**20


def open_tokenizer(folder: Path, flag: str) -> Any:
    """The tokenizer of a folder, without running code from it.

    Raises:
        InputError: it does not load.
    """
    if not folder.is_dir():
        raise InputError(f"{flag}: {folder} is not a folder")
    refuse_odd_files(folder, flag)
    from transformers.utils import logging

    from ...convert.tokens.tokenization import load_tokenizer

    logging.set_verbosity_error()
    try:
        return load_tokenizer(str(folder))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # many kinds, a panic of the Rust library among them, all meaning the same
        raise InputError(
            f"{flag}: no usable tokenizer in {folder} ({reason(error)}); tokenizer.json is needed"
        ) from None


def largest_id(tokenizer: Any) -> int:
    """The largest id that a text may have; one beyond it that only pads is never given to the engine."""
    ids, pad = tokenizer.get_vocab(), tokenizer.pad_token
    others = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token}
    return max((i for token, i in ids.items() if token != pad or token in others), default=-1)


def check_chat(tokenizer: Any, folder: str) -> None:
    """Raise InputError unless the chat template renders a user's message, in Jinja's sandbox and within bounds."""
    if not tokenizer.chat_template:
        raise InputError(f"--chat: the tokenizer in {folder} has no chat template; leave --chat out")
    message, blamed = {"role": "user", "content": "hello"}, f"--chat: the chat template in {folder}"

    def render() -> bytes:
        try:
            text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        except MemoryError:
            raise
        except Exception as error:  # a template may raise whatever it likes
            raise InputError(f"{blamed} does not render ({reason(error)})") from None
        if not isinstance(text, str):
            raise InputError(f"{blamed} makes no text")
        return b""

    in_child(render, RENDER_SECONDS, blamed, RENDER_BYTES)
