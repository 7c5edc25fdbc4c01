"""Prompts as people have them: a text, a chat with its tools, a file of either; and the token ids that they become."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, shown
from ..files.disk import shown_path
from ..sources.documents import plain_text
from ..sources.records import ARROW, JSON, records
from ..sources.tokenizer import Tokenizer

FIELDS = ("prompt", "text", "messages", "tools", "chat_template_kwargs")
# What apply_chat_template takes itself, and no template's variable.
RESERVED = {
    "self", "where", "conversation", "messages", "tools", "tokenize", "chat_template", "add_generation_prompt",
    "continue_final_message", "return_dict", "return_tensors", "padding", "truncation", "max_length",
    "tokenizer_kwargs",
}  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """What is to be continued.

    Attributes:
        where: it was given, for messages.
        text: of a plain one; a chat's only message where ``chat`` is asked for.
        messages: of a chat; None for a plain one.
        tools: the schemas that a chat's template is given.
        variables: others that it is given.
    """

    where: str
    text: str = ""
    messages: list[Any] | None = None
    tools: list[Any] | None = None
    variables: dict[str, Any] = field(default_factory=dict)

    def ids(self, tokenizer: Tokenizer, chat: bool) -> list[int]:
        """Its token ids, behind the token that begins every prompt where there is one.

        Args:
            chat: a plain text goes through the chat template too.

        Raises:
            InputError: a template that does not render it, or nothing at all.
        """
        messages, text = self.messages, self.text
        if messages is None and chat:
            messages = [{"role": "user", "content": self.text}]
        if self.tools and messages is not None and not tokenizer.writes_tools:
            raise InputError(f"{self.where}: has tools, and the chat template does not write any; leave them out")
        if messages is not None:
            tools = {} if self.tools is None else {"tools": self.tools}
            text = tokenizer.render(messages, self.where, add_generation_prompt=True, **tools, **self.variables)
        ids = [*tokenizer.front, *tokenizer.ids(text)]
        if not ids:
            raise InputError(f"{self.where}: is empty, and the tokenizer puts no token before it; give it some text")
        return ids


def read_prompts(file: str) -> list[Prompt]:
    """The prompts of a file: records of .json, .jsonl, .parquet or .arrow with ``prompt`` (or ``text``), or with
    ``messages`` and, if wanted, ``tools`` and ``chat_template_kwargs``; of any other file its lines.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    path, name = Path(file), f"--prompts: {shown_path(Path(file))}"
    if path.suffix.lower() in (*JSON, *ARROW):
        prompts = [prompt_of(record, where) for where, record in records(path, name, FIELDS)]
    else:
        prompts = [Prompt(f"{name}: line {number}", line) for number, line in lines(path, name)]
    if not prompts:
        raise InputError(f"{name} has no prompt; give one on a line, or records with prompt or messages")
    return prompts


def lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not blank, with their numbers."""
    for number, line in enumerate("".join(plain_text(path, name)).split("\n"), 1):
        if line.strip():
            yield number, line


def prompt_of(record: Any, where: str) -> Prompt:
    """One record's prompt."""
    said = record if isinstance(record, dict) else {"prompt": record}
    messages, tools, variables = (said.get(key) for key in FIELDS[2:])
    if variables is not None and (not isinstance(variables, dict) or RESERVED & set(variables)):
        raise InputError(
            f"{where}: chat_template_kwargs is {shown(variables)}; an object of template variables is needed"
        )
    if tools is not None and not isinstance(tools, list):
        raise InputError(f"{where}: tools is {shown(tools)}; a list of schemas is needed")
    if messages is not None:
        if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
            raise InputError(
                f"{where}: messages is {shown(messages)}; a list of objects with role and content is needed"
            )
        return Prompt(where, messages=messages, tools=tools, variables=variables or {})
    text = said.get("text") if said.get("prompt") is None else said["prompt"]
    if not isinstance(text, str):
        raise InputError(f"{where}: has no prompt, a text, and no messages, a list; give one of them")
    return Prompt(where, text, tools=tools, variables=variables or {})
