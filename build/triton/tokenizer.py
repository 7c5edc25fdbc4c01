"""Tokenizer folders, which may be anybody's: opened without running code from them, and never without limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...convert.errors import InputError, reason
from ...convert.files.bounded import in_child
from ...convert.sources.tokenizer import refuse_odd_files
from ...convert.tokens.tokenization import decode, encode

# What rendering one short message may take.
RENDER_SECONDS, RENDER_BYTES = 10, 512 * 2**20
COMPARE_SECONDS = 60


# Texts that tokenizers divide in ways of their own.
PROBES = (
    "The quick brown fox's 3 a.m. jump,didn't it?",
    " two  spaces   in\t\ta row ",
    "line\nline\r\n\n\n    indented()",
    "12345 67.89 1,000,000",
    "\u00dcber na\u00efve caf\u00e9 e\u0301",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u3053\u3093\u306b\u3061\u306f",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001d54f\ufffd\u00a0\u3000\x01",
)


def open_tokenizer(folder: Path, flag: str) -> Any:
    """The tokenizer of a folder as a server opens it, without running code from it.

    Raises:
        InputError: it does not load.
    """
    from .models.loading import load_tokenizer

    with usable(folder, flag):
        return load_tokenizer(str(folder))


def open_with_transformers(folder: Path, flag: str) -> Any:
    """The same as the model was converted and measured with.

    Raises:
        InputError: it does not load.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    with usable(folder, flag):
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


@contextmanager
def usable(folder: Path, flag: str) -> Iterator[None]:
    """Whatever a tokenizer's library raises is the folder's fault."""
    if not folder.is_dir():
        raise InputError(f"{flag}: {folder} is not a folder")
    refuse_odd_files(folder, flag)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # many kinds, a panic of the Rust library among them, all meaning the same
        raise InputError(
            f"{flag}: no usable tokenizer in {folder} ({reason(error)}); tokenizer.json is needed"
        ) from None


def compared(folder: Path, measured: Any, flag: str) -> str:
    """What a server and transformers do not agree on in a folder's tokenizer; empty if they read it alike.

    Raises:
        InputError: it does not load, does not tokenize, or does not come to an end.
    """
    served = open_tokenizer(folder, flag)

    def attempt() -> bytes:
        with usable(folder, flag):
            return difference(served, measured).encode("utf-8", "replace")

    return in_child(attempt, COMPARE_SECONDS, f"{flag}: the tokenizer in {folder}").decode()


def difference(served: Any, measured: Any) -> str:
    """What two openings of a tokenizer do not agree on; empty if they are the same."""
    for name in ("special_tokens_map", "chat_template"):
        if getattr(served, name) != getattr(measured, name):
            return name
    if served.get_vocab() != measured.get_vocab():
        return "the vocabulary"
    for text in (*PROBES, *(f"a {token} b" for token in measured.special_tokens_map.values())):
        ids = encode(served, text)
        if ids != encode(measured, text) or encode(served, text, True) != encode(measured, text, True):
            return f"the tokens of {text!r}"
        if any(decode(served, ids, skip) != decode(measured, ids, skip) for skip in (True, False)):
            return f"the text of the tokens of {text!r}"
    return ""


def largest_id(tokenizer: Any) -> int:
    """The largest id that a text may have; one beyond it that only pads is never given to the engine."""
    ids, pad = tokenizer.get_vocab(), tokenizer.pad_token
    others = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token}
    return max((i for token, i in ids.items() if token != pad or token in others), default=-1)


def check_chat(tokenizer: Any, folder: str) -> None:
    """Raise InputError unless the chat template renders a user's message, in Jinja's sandbox and within bounds."""
    if not tokenizer.chat_template:
        raise InputError(f"--chat: the tokenizer in {folder} has no chat template; leave --chat out")
    from .models.chat import render

    message, blamed = {"role": "user", "content": "hello"}, f"--chat: the chat template in {folder}"

    def attempt() -> bytes:
        try:
            render(tokenizer, {"messages": [message]})
        except MemoryError:
            raise
        except Exception as error:  # a template may raise whatever it likes
            raise InputError(f"{blamed} does not render ({reason(error)})") from None
        return b""

    in_child(attempt, RENDER_SECONDS, blamed, RENDER_BYTES)
