"""Prompts in, text out: files of prompts, chats, stop words, end tokens, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import enginesmith as es
from enginesmith.convert.generate.job import Speaker
from enginesmith.convert.generate.prompts import Prompt
from enginesmith.convert.generate.text import Written
from enginesmith.convert.sources.tokenizer import Tokenizer

from .command import run
from .conftest import write_model
from .family_models import converted, write_family
from .triton_folders import write_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if tools %}[{{ tools | length }} tools]{% endif %}"
    "{% if add_generation_prompt %}<bot>{% if enable_thinking is defined and not enable_thinking %}(quiet){% endif %}"
    "{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("text") / "hf", vocab_size=400, max_position_embeddings=256)
    write_tokenizer(folder, chat=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def checkpoint(model: Path) -> Path:
    converted(model, model.parent / "checkpoint", quant="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", kv_cache="INT8")
    return model.parent / "checkpoint"


def said(checkpoint: Path, model: Path, prompt: str, **options: Any) -> Written:
    return es.generate(checkpoint, [prompt], es.GenerateOptions(**options), model).answers[0]


def test_the_pieces_are_the_text(checkpoint: Path, model: Path) -> None:
    pieces: dict[int, str] = {0: "", 1: ""}

    def hear(number: int, piece: str) -> None:
        pieces[number] += piece

    made = es.generate(checkpoint, ["hello", "a b c"], es.GenerateOptions(max_tokens=30), model, on_piece=hear)
    assert [pieces[0], pieces[1]] == [answer.text for answer in made.answers]
    assert [len(answer.ids) for answer in made.answers] == [30, 30]
    assert made.speed.rate > 0
    assert made.speed.cache > 0


def test_stop_words_that_end_inside_a_token(checkpoint: Path, model: Path) -> None:
    whole = said(checkpoint, model, "hello", max_tokens=40)
    for at in range(1, len(whole.text) - 3, 5):
        word = whole.text[at : at + 3]
        cut = said(checkpoint, model, "hello", max_tokens=40, stop=(word,))
        assert cut.text == whole.text[: whole.text.index(word)]
        assert cut.reason == "stop"
        assert len(cut.ids) <= len(whole.ids)


def test_every_end_token_of_generation_config(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    plain = said(checkpoint, model, "hello", max_tokens=12)
    (tmp_path / "words").mkdir()
    for file in model.glob("*token*"):
        (tmp_path / "words" / file.name).write_bytes(file.read_bytes())
    for end in plain.ids[2:5]:
        (tmp_path / "words" / "generation_config.json").write_text(json.dumps({"eos_token_id": [399, end]}))
        ended = said(checkpoint, tmp_path / "words", "hello", max_tokens=12)
        assert (ended.ids, ended.reason) == (plain.ids[: plain.ids.index(end)], "end")


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": CHAT},
        {"messages": CHAT, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"messages": CHAT, "chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_chats_as_transformers_renders_them(record: dict[str, Any], model: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(record))
    (prompt,) = es.read_prompts(file)
    theirs = AutoTokenizer.from_pretrained(model)
    variables = record.get("chat_template_kwargs", {})
    wanted = theirs.apply_chat_template(
        record["messages"], tools=record.get("tools"), add_generation_prompt=True, return_dict=False, **variables
    )
    assert prompt.ids(Tokenizer(model, "--tokenizer_dir"), chat=False) == [theirs.bos_token_id, *wanted]


def test_a_plain_prompt_as_a_chat(model: Path) -> None:
    words = Tokenizer(model, "--tokenizer_dir")
    assert Prompt("here", "hello").ids(words, chat=True) == [*words.front, *words.ids("<user>hello<bot>")]
    assert Prompt("here", "hello").ids(words, chat=False) == [*words.front, *words.ids("hello")]


def test_files_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\n\n two\n")
    assert [prompt.text for prompt in es.read_prompts(tmp_path / "lines.txt")] == ["one", " two"]
    (tmp_path / "lines.txt").write_text("one\x0ctwo\u2028three\n")
    assert [prompt.text for prompt in es.read_prompts(tmp_path / "lines.txt")] == ["one\x0ctwo\u2028three"]
    records = [{"prompt": "a"}, {"text": "b"}, "c", {"prompt": None, "text": "d"}]
    (tmp_path / "records.json").write_text(json.dumps(records))
    assert [prompt.text for prompt in es.read_prompts(tmp_path / "records.json")] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"messages": []}', "messages is"),
        ('{"messages": [3]}', "messages is"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": 3}', "tools is"),
        ('{"prompt": 3}', "has no prompt"),
        ('{"prompt": "x", "chat_template_kwargs": {"tokenize": true}}', "chat_template_kwargs is"),
        ('{"messages": [{"role": "u", "content": "x"}], "chat_template_kwargs": {"where": 1}}', "chat_template_kwargs"),
        ("", "has no prompt"),
    ],
)
def test_what_is_no_file_of_prompts(content: str, line: str, checkpoint: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(content)
    done = run("generate", checkpoint, "--tokenizer_dir", model, "--prompts", tmp_path / "prompts.jsonl", expect=2)
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command(checkpoint: Path, model: Path) -> None:
    done = run("generate", checkpoint, "--reference", model, "--prompt", "hello", "--max_tokens", 8)
    wanted = es.generate(checkpoint, ["hello"], es.GenerateOptions(max_tokens=8), reference=model)
    assert done.stdout.startswith(wanted.answers[0].text + "\n")
    assert wanted.reference is not None
    assert wanted.reference[0].text in done.stdout
    assert "8 tokens (length)" in done.stderr
    assert "part after" in done.stderr or "say the same" in done.stderr


def test_the_command_on_a_file(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("hello\na b\n")
    done = run("generate", checkpoint, "--reference", model, "--prompts", tmp_path / "prompts.txt", "--max_tokens", 5)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = es.generate(checkpoint, ["hello", "a b"], es.GenerateOptions(max_tokens=5), reference=model)
    assert [answer["text"] for answer in answers] == [answer.text for answer in wanted.answers]
    assert [answer["equal_tokens"] for answer in answers] == [wanted.equal_tokens(0), wanted.equal_tokens(1)]
    assert [answer["tokens"] for answer in answers] == [5, 5]


REFUSED = {
    "no prompt": ([], "give --prompt TEXT, or --prompts FILE"),
    "both": (["--prompt", "x", "--prompts", "y"], "give --prompt TEXT, or --prompts FILE"),
    "too long": (["--prompt", "x", "--max_tokens", 300], "are more than the 256 positions"),
    "greedy and not": (["--prompt", "x", "--temperature", 0, "--top_k", 3], "--temperature 0 takes the most likely"),
    "no such file": (["--prompts", "missing.txt"], "missing.txt"),
    "no device": (["--prompt", "x", "--device", "tpu"], "no device"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, checkpoint: Path, model: Path) -> None:
    words, line = REFUSED[case]
    done = run("generate", checkpoint, "--tokenizer_dir", model, *words, expect=2)
    assert line in done.stderr
    assert done.stdout == ""


def test_no_tokenizer_and_no_words(checkpoint: Path, tmp_path: Path) -> None:
    assert "no tokenizer here" in run("generate", checkpoint, "--prompt", "x", expect=2).stderr
    converted(write_family(tmp_path / "hf", "BERT"), tmp_path / "ck", quant=None)
    with pytest.raises(es.InputError, match="predicts no tokens"):
        Speaker(tmp_path / "ck", None)


def test_another_model_as_reference(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "hf", vocab_size=400, hidden_size=128)
    write_tokenizer(other)
    done = run("generate", checkpoint, "--reference", other, "--prompt", "x", expect=2)
    assert "--reference: hidden_size is 128" in done.stderr


def test_a_tokenizer_of_another_model(model: Path, tmp_path: Path) -> None:
    small = write_model(tmp_path / "hf", vocab_size=101)
    done = run("generate", small, "--tokenizer_dir", model, "--prompt", "hello world", "--max_tokens", 2, expect=2)
    assert "is beyond the model's vocabulary of 101" in done.stderr


def test_where_no_token_can_come(model: Path, tmp_path: Path) -> None:
    converted(model, tmp_path / "ck", quant=None)
    held = load_file(tmp_path / "ck" / "rank0.safetensors")
    save_file(
        held | {"transformer.ln_f.weight": held["transformer.ln_f.weight"] * torch.nan},
        tmp_path / "ck" / "rank0.safetensors",
    )
    done = run("generate", tmp_path / "ck", "--tokenizer_dir", model, "--prompt", "hello", expect=2)
    assert "no token can come next" in done.stderr


@pytest.mark.parametrize("template", ["{{ 'x' * 100000000 }}", "{{ 'x' * 100000000000000 }}"])
def test_a_template_that_writes_without_end(template: str, model: Path, tmp_path: Path) -> None:
    words = write_tokenizer(tmp_path / "words", chat=True)
    (words / "chat_template.jinja").write_text(template)
    with pytest.raises(es.InputError, match=r"its chat template does not render the prompt \(it writes"):
        Prompt("the prompt", "hello").ids(Tokenizer(words, "--tokenizer_dir"), chat=True)
