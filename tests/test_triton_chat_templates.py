"""Chat templates without transformers: the same text as with it; what clients may send to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from enginesmith.build.triton.generate import generate
from enginesmith.build.triton.models.chat import ChatError, chat_of, render
from enginesmith.build.triton.models.loading import FastTokenizer
from enginesmith.build.triton.options import TritonOptions
from enginesmith.convert.tokens.tokenization import decode

from .test_triton_models import answers, error_of, serve
from .triton_backend import Server, asked, echo
from .triton_folders import write_engine, write_tokenizer

# Templates in the manner of well-known families, and chats for them.
DATA = Path(__file__).parent / "data" / "chats"
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(DATA.glob("*.jinja"))}
CHATS: dict[str, dict[str, Any]] = json.loads((DATA / "chats.json").read_text(encoding="utf-8"))
USER, TOOL = CHATS["tools"]["messages"][0], CHATS["tools"]["tools"][0]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return FastTokenizer(folder), AutoTokenizer.from_pretrained(folder)


def outcome(rendered: Any) -> tuple[str, bool]:
    """A text, or what an error says."""
    try:
        return rendered(), True
    except Exception as error:
        return str(error), False


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
def test_the_same_text_as_transformers(name: str, chat: str, both: tuple[Any, Any]) -> None:
    ours, theirs = both
    ours.chat_template = theirs.chat_template = TEMPLATES[name]
    given = {"add_generation_prompt": True, **CHATS[chat]}
    variables = given.pop("chat_template_kwargs", {})
    conversation = given.pop("messages")
    expected, good = outcome(lambda: theirs.apply_chat_template(conversation, tokenize=False, **given, **variables))
    text, worked = outcome(lambda: render(ours, chat_of(json.dumps(CHATS[chat]))))
    assert worked == good, (text, expected)
    assert text == expected or name == "names"  # which refuses in other words


def test_a_template_for_tools_where_there_is_one(both: tuple[Any, Any]) -> None:
    ours, _ = both
    ours.chat_template = {"default": "plain", "tool_use": "with tools"}
    assert [render(ours, CHATS[name]) for name in ("one", "tools")] == ["plain", "with tools"]
    ours.chat_template = {"default": "plain"}
    assert render(ours, CHATS["tools"]) == "plain"


@pytest.mark.parametrize(
    "text", ["hello", "[1] hello", "[]", "{}", '{"a": 1}', '["a"]', "{% x %}", "[" * 5000, '{"a":' * 5000, '[{"a": 1}]']
)
def test_other_text_is_what_the_user_says(text: str) -> None:
    assert chat_of(text) == {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ({"messages": []}, '"messages" is empty'),
        ({"messages": None}, '"messages" is empty'),
        ({"messages": "hello"}, '"messages" is not a list of objects'),
        ({"messages": ["hello"]}, '"messages" is not a list of objects'),
        ({"messages": [{"role": "user"}]}, "both strings"),
        ({"messages": [{"role": "user", "content": None}]}, "both strings"),
        ({"messages": [{"role": "user", "content": []}]}, "both strings"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "both strings"),
        ({"messages": [{"content": "a"}]}, "both strings"),
        ({"messages": [USER], "tool": []}, "'tool' is none of messages, tools, documents, add_generation_prompt"),
        ({"messages": [USER], "tools": {}, "temperature": 1}, "'temperature' is none of"),
        ({"messages": [USER], "tools": TOOL}, '"tools" is not a list of objects'),
        ({"messages": [USER], "documents": ["a"]}, '"documents" is not a list of objects'),
        ({"messages": [USER], "add_generation_prompt": 1}, "neither true nor false"),
        ({"messages": [USER], "chat_template_kwargs": []}, "not an object of variables"),
        ({"messages": [USER], "chat_template_kwargs": {"messages": []}}, "variables beside messages, tools"),
    ],
)
def test_chats_that_are_none(chat: dict[str, Any], words: str) -> None:
    with pytest.raises(ChatError) as raised:
        chat_of(json.dumps(chat))
    assert words in str(raised.value)


def test_tools_and_variables_reach_the_template_of_a_repository(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer", "byte_level")
    (folder / "chat_template.jinja").write_text(TEMPLATES["thinking"])
    folders = [str(write_engine(tmp_path / "engine")), str(folder), str(tmp_path / "repository")]
    served = Server(generate(TritonOptions(*folders, chat=True, decoupled=True)), echo)
    chat = {"messages": [USER], "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}
    for model in ("ensemble", "tensorrt_llm_bls"):
        [text] = answers(served.call(model, asked(json.dumps(chat))))
        assert json.dumps(TOOL, ensure_ascii=False) in text
        assert text.endswith("<think>\n\n</think>\n\n")
        assert "'tool' is none of" in error_of(served.call(model, asked(json.dumps({"messages": [USER], "tool": []}))))


def test_lone_surrogates_fail_alone(tmp_path: Path) -> None:
    served = serve(tmp_path, chat=True)
    served.models["preprocessing"].chat = True
    good, bad = asked("hello"), asked('[{"role": "user", "content": "\\ud800"}]')
    first, failed, last = served.calls("preprocessing", [as_inputs(request) for request in (good, bad, good)])
    assert first[0]["INPUT_ID"].tolist() == last[0]["INPUT_ID"].tolist()
    assert "preprocessing failed" in error_of(failed)


def as_inputs(request: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"QUERY": request["text_input"], "REQUEST_OUTPUT_LEN": request["max_tokens"]}


def test_the_text_that_a_template_made_is_tokenized_whole(tmp_path: Path) -> None:
    served = serve(tmp_path, chat=True)
    model = served.models["preprocessing"]
    model.chat = True
    [prepared] = served.call("preprocessing", as_inputs(asked(json.dumps([USER]))))
    assert decode(model.tokenizer, prepared["INPUT_ID"][0]) == f"[user]{USER['content']}\n[bot]"
