"""A tokenizer without transformers: the same tokens and texts as with it, and none of its weight."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from enginesmith.build.triton import tokenizer
from enginesmith.build.triton.check import check
from enginesmith.build.triton.generate import generate
from enginesmith.build.triton.models import loading
from enginesmith.build.triton.models.loading import FastTokenizer, load_tokenizer
from enginesmith.build.triton.options import TritonOptions
from enginesmith.convert.errors import InputError
from enginesmith.convert.tokens.tokenization import decode, encode

from .command import run
from .test_tokenizers import BROKEN
from .test_triton_models import answers
from .triton_backend import Server, asked, echo
from .triton_folders import CORPUS, KINDS, varied_strings, write_engine, write_tokenizer

STRINGS = varied_strings(300, seed=1)


def word_piece() -> PreTrainedTokenizerFast:
    """BERT's kind: lower case, words in pieces, a token before and one behind the text."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        clean_up_tokenization_spaces=True,
    )  # fmt: skip


def unigram() -> PreTrainedTokenizerFast:
    """T5's kind: pieces with probabilities, spaces as U+2581, EOS behind the text."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False, initial_alphabet=list("abcxyz")
    )
    made.train_from_iterator(CORPUS * 3, trainer)
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def with_more_tokens() -> PreTrainedTokenizerFast:
    """Added tokens of every kind: some take the spaces beside them, some are words, some no special ones."""
    made: PreTrainedTokenizerFast = KINDS["byte_level"]()
    made.add_tokens(
        [AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True), AddedToken("fox", single_word=True)]
    )
    more = ["<|tool|>", AddedToken("<x>", lstrip=True)]
    made.add_special_tokens({"bos_token": "<|begin|>", "extra_special_tokens": more})
    return made


MORE = {**KINDS, "word_piece": word_piece, "unigram": unigram, "with_more_tokens": with_more_tokens}


def written(folder: Path, kind: str, **settings: Any) -> Path:
    """A folder as transformers writes it, with more settings."""
    MORE[kind]().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def assert_same(folder: Path, texts: list[str] = STRINGS) -> None:
    """The very ids and texts that transformers has."""
    ours, theirs = FastTokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(ours, name) == getattr(theirs, name)
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_id")
    added = [f"a {token} b{token}" for token in theirs.get_added_vocab()]
    used = set[int]()
    for text in (*texts, "", " ", *added):
        for special in (True, False):
            ids = encode(ours, text, special)
            assert ids == encode(theirs, text, special), text
            assert decode(ours, ids, special) == decode(theirs, ids, special), text
            used.update(ids)
    for i in used:  # pieces of characters, leading spaces
        assert decode(ours, [i]) == decode(theirs, [i])


@pytest.mark.parametrize("kind", MORE)
def test_the_same_ids_and_texts_as_transformers(kind: str, tmp_path: Path) -> None:
    assert_same(written(tmp_path / "tokenizer", kind))


TOKEN = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}


@pytest.mark.parametrize(
    "settings",
    [
        {"add_bos_token": True, "add_eos_token": True},  # which tokenizer.json decides
        {"clean_up_tokenization_spaces": True},
        {"split_special_tokens": True},
        {"additional_special_tokens": ["the", "<new>"], "mask_token": "<mask>"},
        {"extra_special_tokens": {"image_token": "<image>"}, "audio_token": "<audio>"},
        {"bos_token": {"__type": "AddedToken", "content": "<b>", **TOKEN}},
        {
            "added_tokens_decoder": {
                "1": {"content": "<s>", **TOKEN, "rstrip": True},
                "311": {"content": "<n>", **TOKEN},
            }
        },
        {"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]},
    ],
)
def test_settings_beside_it(settings: dict[str, Any], tmp_path: Path) -> None:
    assert_same(
        written(tmp_path / "tokenizer", "sentencepiece", **settings), [*STRINGS[:50], "a <s> b", "the", "a <n> b"]
    )


def test_files_of_older_releases(tmp_path: Path) -> None:
    folder = written(tmp_path / "tokenizer", "sentencepiece")
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": {"content": "<pad>", **TOKEN}, "eos_token": "the"})
    )
    (folder / "added_tokens.json").write_text(json.dumps({"<old>": 311, "<pad>": 312}))
    assert_same(folder, ["a <old> <pad> the"])
    (folder / "tokenizer_config.json").unlink()
    assert FastTokenizer(folder).pad_token_id == 312


def test_padding_and_truncation_of_the_file_are_off(tmp_path: Path) -> None:
    folder = written(tmp_path / "tokenizer", "sentencepiece")
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.enable_truncation(4)
    made.enable_padding(pad_token="</s>", pad_id=2, length=64)
    made.save(str(folder / "tokenizer.json"))
    assert_same(folder, ["hello the stop"])


def test_templates_in_files(tmp_path: Path) -> None:
    folder = written(tmp_path / "tokenizer", "byte_level", chat_template="stated")
    assert_same(folder, [])
    (folder / "chat_template.jinja").write_text("file")
    assert_same(folder, [])
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert_same(folder, [])
    os.mkfifo(folder / "additional_chat_templates" / "odd.jinja")  # which nobody would ever write to
    assert FastTokenizer(folder).chat_template == {"default": "file", "tool_use": "tools"}
    folders = [str(path) for path in (write_engine(tmp_path / "engine"), folder, tmp_path / "repository")]
    with pytest.raises(InputError, match=r"odd\.jinja: not a regular file"):
        generate(TritonOptions(*folders))
    (folder / "additional_chat_templates" / "odd.jinja").unlink()
    copied = generate(TritonOptions(*folders, self_contained=True)) / "preprocessing/1/tokenizer"
    assert FastTokenizer(copied).chat_template == FastTokenizer(folder).chat_template


def test_neither_torch_nor_transformers_is_imported(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer", chat=True)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import chat; from loading import load_tokenizer;"
        "chat.render(load_tokenizer(sys.argv[2]), chat.chat_of('hello'));"
        "print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    beside = Path(loading.__file__).parent
    done = subprocess.run([sys.executable, "-c", program, beside, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def served(folder: Path, source: Path, words: str) -> Server:
    """The repository, made by the command, which must say these words."""
    engine = write_engine(folder / "engine")
    out = folder / "repository"
    given = {"engine_dir": engine, "tokenizer_dir": source, "output_dir": out}
    said = run("triton", *(f"--{name}={value}" for name, value in given.items())).stderr
    assert words in said
    assert check(out) == []
    return Server(out, echo)


def test_a_folder_of_which_transformers_knows_more(tmp_path: Path) -> None:
    """GPT-2's says nothing of its tokens, its class does: the repository holds a tokenizer that says it."""
    folder = written(tmp_path / "tokenizer", "byte_level")
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    server = served(tmp_path, folder, "reads")
    opened = server.models["preprocessing"].tokenizer
    assert type(opened).__name__ == "FastTokenizer"
    assert opened.eos_token == opened.bos_token == "<|endoftext|>"
    assert answers(server.call("ensemble", asked("the quick fox"))) == ["the quick fox"]


@pytest.mark.parametrize("fault", ["WordLevel", "WordPiece", "Unigram"])
def test_a_tokenizer_that_cannot_tokenize(fault: str, tmp_path: Path) -> None:
    folder, engine = write_tokenizer(tmp_path / "tokenizer"), write_engine(tmp_path / "engine")
    BROKEN[fault](folder)
    with pytest.raises(InputError, match=r"^--tokenizer_dir: no usable tokenizer in ") as raised:
        generate(TritonOptions(str(engine), str(folder), str(tmp_path / "repository")))
    assert len(str(raised.value)) < 400


def test_a_tokenizer_that_does_not_come_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, engine = write_tokenizer(tmp_path / "tokenizer"), write_engine(tmp_path / "engine")
    monkeypatch.setattr(tokenizer, "COMPARE_SECONDS", 0.3)
    monkeypatch.setattr(tokenizer, "difference", lambda *_: time.sleep(600))
    with pytest.raises(InputError, match=r"the tokenizer in .* takes more than 0"):
        generate(TritonOptions(str(engine), str(folder), str(tmp_path / "repository")))


def test_a_tokenizer_that_cannot_be_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, engine = write_tokenizer(tmp_path / "tokenizer"), write_engine(tmp_path / "engine")
    monkeypatch.setattr(tokenizer, "difference", lambda *_: "the vocabulary")
    with pytest.raises(InputError, match=r"no server would read it as transformers does \(the vocabulary\)"):
        generate(TritonOptions(str(engine), str(folder), str(tmp_path / "repository")))
    assert not (tmp_path / "repository").exists()


def test_a_folder_without_tokenizer_json(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "fox", "##es"]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    server = served(tmp_path, folder, "has no tokenizer.json; the repository holds one, made by transformers")
    assert type(server.models["postprocessing"].tokenizer).__name__ == "FastTokenizer"
    assert answers(server.call("ensemble", asked("the foxes"))) == ["the foxes"]


def test_transformers_reads_what_has_no_tokenizer_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "fox", "##es"]))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert encode(load_tokenizer(str(tmp_path)), "foxes") == [5, 6]
    assert "has no tokenizer.json: transformers reads it" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "{", '{"bos_token": {"no": 1}}'])
def test_settings_that_are_none(content: str, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer")
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises((ValueError, TypeError, KeyError)):
        load_tokenizer(str(folder))


def test_a_real_tokenizer(real_tokenizer: Path) -> None:
    assert_same(real_tokenizer, varied_strings(1000, seed=2))
