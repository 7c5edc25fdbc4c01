"""Chats: what a client may send as text_input, and the text that the chat template makes of it.

Copied beside preprocessing's model.py. Templates are rendered as transformers renders them, in Jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# What a chat may hold; "messages" must be there.
LISTS, KEYS = ("messages", "tools", "documents"), ("add_generation_prompt", "chat_template_kwargs")
# Names for a message's reasoning; templates read the first, some the second.
REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatError(ValueError):
    """What is wrong with a chat, in a line for who sent it."""


def chat_of(text: str) -> dict[str, Any]:
    """The chat that a text means: a JSON list of messages, a JSON object that has one, or a message of the user.

    Raises:
        ChatError: a chat that lacks something, or says what is not known.
    """
    try:
        value = json.loads(text) if text.lstrip()[:1] in ("[", "{") else None
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, list) and value and all(isinstance(item, dict) and "role" in item for item in value):
        value = {"messages": value}
    if not isinstance(value, dict) or "messages" not in value:
        return {"messages": [{"role": "user", "content": text}]}
    check_chat(value)
    return value


def check_chat(chat: dict[str, Any]) -> None:
    """Raise ChatError unless templates can be given this."""
    if unknown := [key for key in chat if key not in (*LISTS, *KEYS)]:
        raise ChatError(f"{unknown[0]!r} is none of {', '.join((*LISTS, *KEYS))}")
    for key in LISTS:
        items = chat.get(key) or []
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ChatError(f'"{key}" is not a list of objects')
    variables = chat.get("chat_template_kwargs", {})
    if not isinstance(variables, dict) or not variables.keys().isdisjoint((*LISTS, *KEYS)):
        raise ChatError(f'"chat_template_kwargs" is not an object of variables beside {", ".join((*LISTS, *KEYS))}')
    if not isinstance(chat.get("add_generation_prompt", True), bool):
        raise ChatError('"add_generation_prompt" is neither true nor false')
    if not chat["messages"]:
        raise ChatError('"messages" is empty')
    for message in chat["messages"]:
        if not isinstance(message.get("role"), str) or not is_content(message):
            raise ChatError('each message needs "role" and "content", both strings')


def is_content(message: dict[str, Any]) -> bool:
    """Text, or pieces that say their type; a message that calls tools may have none."""
    content = message.get("content")
    if content is None:
        return bool(message.get("tool_calls"))
    pieces = content if isinstance(content, list) else []
    return isinstance(content, str) or (bool(pieces) and all(isinstance(p, dict) and "type" in p for p in pieces))


def render(tokenizer: Any, chat: dict[str, Any]) -> str:
    """The text that a tokenizer's template makes of a chat; templates raise whatever they like."""
    tools, template = chat.get("tools"), tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("tool_use" if tools is not None and "tool_use" in template else "default")
    if template is None:
        raise ChatError("the tokenizer has several chat templates and no default among them")
    variables = {**tokenizer.special_tokens_map, **chat.get("chat_template_kwargs", {})}
    return compiled(template).render(
        **variables,
        messages=[as_templates_know_it(message) for message in chat["messages"]],
        tools=tools,
        documents=chat.get("documents"),
        add_generation_prompt=chat.get("add_generation_prompt", True),
    )


def as_templates_know_it(message: dict[str, Any]) -> dict[str, Any]:
    """Without what is null, which many templates would write as None, and reasoning under each of its names."""
    said = {key: value for key, value in message.items() if value is not None}
    reasoning = next((said[name] for name in REASONING if name in said), None)
    return said if reasoning is None else {"thinking": reasoning, **said, "reasoning_content": reasoning}


@lru_cache
def compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    functions: dict[str, Callable[..., Any]] = {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": TemplateDict(),
        "namespace": TemplateNamespace,
    }
    environment.globals |= functions
    return environment.from_string(template)


class GenerationBlocks(Extension):
    """{% generation %} ... {% endgeneration %}: marks for training what an assistant says; nothing else."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Unlike Jinja's own, which escapes what HTML would read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    raise TemplateError(message)


class TemplateDict:
    """dict, of which a template gets at nothing else."""

    def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:
        return dict(*values, **named)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        return dict.fromkeys(*values)


class TemplateNamespace(Namespace):
    """A namespace without names that Python keeps to itself."""

    def __init__(*values: Any, **named: Any) -> None:
        self = values[0]
        Namespace.__init__(self)
        for name, value in dict(*values[1:], **named).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace takes no name that begins with an underscore, as {name!r} does")
        Namespace.__setitem__(self, name, value)
