"""Text to calibrate on and to measure with, in pieces that are read when they are needed.

Records have their text in ``messages`` (through the tokenizer's chat template), in ``text``, or in what ``PARTS``
names, whichever of these comes first. Documents are joined in the order of the files: texts with a blank line
between them, chats as their template ends and begins.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import SHOWN, InputError, printable, reason, shown
from ..files.disk import open_regular
from .records import ARROW, JSON, records

# Every Python carries its own reference topics; the first half calibrates, the second is held out.
BUILT_IN = ("pydoc", "pydoc-heldout")
# A question and its answer, in this order, each on lines of its own.
PARTS = ("prompt", "instruction", "input", "completion", "output", "response")
FIELDS = ("messages", "text", *PARTS)
# Characters that are read, and tokenized, at a time.
BLOCK = 2**18
# Where text may be cut, best first: behind a line break or before a space that stands alone, so that tokenizers
# which split at white space first give the same tokens with the cut as without.
CUTS = (re.compile(r"\S\n(?=\S)"), re.compile(r"\S(?= \S)"), re.compile(r"\s(?=\S)"))

Render = Callable[[list[Any], str], str]


def documents(source: str, name: str, render: Render) -> Iterator[str]:
    """A text in pieces of any size, which joined are the whole of it.

    Args:
        source: a name of BUILT_IN, a file, or a folder.
        name: what it is called in messages.
        render: a chat as text; (messages, where they stand).

    Raises:
        InputError: it cannot be read, or holds records without known fields.
    """
    path = Path(source)
    if source in BUILT_IN:
        yield built_in(source)
    elif path.is_dir() or path.suffix.lower() in (*JSON, *ARROW):
        begun = False
        for where, record in records(path, name, FIELDS):
            chat = conversation(record)
            text = written(record, where) if chat is None else render(chat, where)
            if text:
                yield "\n\n" + text if begun and chat is None else text
                begun = True
    else:
        yield from plain_text(path, name)


def built_in(name: str) -> str:
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[key] for key in sorted(topics))
    half = len(text) // 2
    return text[:half] if name == "pydoc" else text[half:]


def plain_text(path: Path, name: str) -> Iterator[str]:
    with open_regular(path) as file:
        try:
            text = io.TextIOWrapper(file, encoding="utf-8-sig")
            while block := text.read(BLOCK):
                yield block
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{name} is not readable as UTF-8 text ({reason(error)})") from None


def conversation(record: Any) -> list[Any] | None:
    """The messages of a record that has some: ``messages``, or a prompt and a completion that are lists of them."""
    if not isinstance(record, dict):
        return None
    if is_chat(record.get("messages")):
        return list(record["messages"])
    if record.get("text"):
        return None
    parts = [record[part] for part in PARTS if record.get(part)]
    return [message for part in parts for message in part] if parts and all(map(is_chat, parts)) else None


def is_chat(messages: Any) -> bool:
    """Whether a value is a list of messages, each with who says it."""
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages)
    )


def written(record: Any, where: str) -> str:
    """The text of a record that is no chat; empty where its fields are."""
    if isinstance(record, str):
        return checked(record, where)
    if not isinstance(record, dict):
        raise InputError(f"{where}: holds {shown(record)}, which is no record")
    known = [field for field in FIELDS if field in record]
    if not known:
        fields = printable(", ".join(map(str, record)) or "none", 2 * SHOWN)
        raise InputError(
            f"{where}: no text in its fields ({fields}); text is read from text, from messages, or from prompt or "
            "instruction, input, and completion, output or response"
        )
    given = [field for field in known if record[field] not in (None, "", [])]
    for field in given:
        if field == "messages" or not isinstance(record[field], str):
            form = "a list of objects with role and content" if field == "messages" else "text"
            raise InputError(f"{where}: {field} is not {form}")
    if "text" in given:
        return checked(record["text"], where)
    return checked("\n".join(record[field] for field in given), where)


def checked(text: str, where: str) -> str:
    """A text that can be encoded; JSON can write halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: holds half a character (a lone surrogate), which no tokenizer reads") from None
    return text


def blocks(pieces: Iterable[str], size: int = BLOCK) -> Iterator[str]:
    """A text in blocks of at most ``size`` characters, cut where tokenizers would."""
    pending = ""
    for piece in pieces:
        for start in range(0, len(piece), size):
            pending += piece[start : start + size]
            while len(pending) > size:
                end = cut(pending, size)
                yield pending[:end]
                pending = pending[end:]
    if pending:
        yield pending


def cut(text: str, size: int) -> int:
    """Where the block that ``text`` begins with ends: in its second half, or at ``size`` where nothing is fit."""
    for mark in CUTS:
        ends = [match.end() for match in mark.finditer(text, size // 2, size + 1)]
        if ends and ends[-1] <= size:
            return ends[-1]
    return size
