"""A tokenizer's folder opened for Triton's Python models: copied beside each model.py.

A tokenizer.json is read by the tokenizers library alone, as transformers from 5 on reads it: an instance of a model
then holds no PyTorch. Attributes and methods are named as transformers' are, which is what reads other folders.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_tokenizer(folder: str) -> Any:
    """The tokenizer in a folder; code that comes with it is not run."""
    if (Path(folder) / "tokenizer.json").exists():
        return FastTokenizer(Path(folder))
    print(f"{folder} has no tokenizer.json: transformers reads it, and takes some 250 MB more", file=sys.stderr)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


class FastTokenizer:
    """A folder's tokenizer.json, with what its other files say about tokens and chats.

    Attributes:
        library: the tokenizers library's object.
        special_tokens_map: name -> token; chat templates know them by these names.
        chat_template: one, or several by their names; None if there is none.
    """

    def __init__(self, folder: Path):
        self.library = Tokenizer.from_file(str(folder / "tokenizer.json"))
        settings = read_object(folder / "tokenizer_config.json")
        padding = self.library.padding
        self.library.no_truncation()
        self.library.no_padding()
        self.library.encode_special_tokens = bool(settings.get("split_special_tokens", False))
        if padding is not None:
            settings.setdefault("pad_token", padding["pad_token"])
        self.special_tokens_map = self._add_tokens(folder, settings)
        self.chat_template = chat_templates(folder, settings)
        self.bos_token, self.bos_token_id = self._named("bos_token")
        self.eos_token, self.eos_token_id = self._named("eos_token")
        self.pad_token, self.pad_token_id = self._named("pad_token")
        self.unk_token, self.unk_token_id = self._named("unk_token")

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self.library.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        if clean_up_tokenization_spaces:
            raise ValueError("clean_up_tokenization_spaces: texts are as tokens say them, no space is tidied up")
        text: str = self.library.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def convert_ids_to_tokens(self, index: int) -> str | None:
        token: str | None = self.library.id_to_token(index)
        return token

    def get_vocab(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self.library.get_vocab(with_added_tokens=True)
        return vocabulary

    def _named(self, name: str) -> tuple[str | None, int | None]:
        token = self.special_tokens_map.get(name)
        return token, None if token is None else self.library.token_to_id(token)

    def _add_tokens(self, folder: Path, settings: dict[str, Any]) -> dict[str, str]:
        """Add what tokenizer.json does not have yet; return the named ones.

        Where tokenizer_config.json lists no added tokens, the files of older releases count, too.
        """
        there = self.library.get_added_tokens_decoder()
        listed = settings.get("added_tokens_decoder")
        if listed is None:
            settings |= read_object(folder / "special_tokens_map.json")
            special = {text_of(token) for token in special_tokens(settings)}
            older = read_object(folder / "added_tokens.json")
            added = {
                index: AddedToken(t, normalized=t not in special, special=t in special) for t, index in older.items()
            }
            added |= there
        else:
            added = {int(index): AddedToken(**token) for index, token in listed.items()}
        self.library.add_tokens([token for i, token in sorted(added.items()) if repr(token) != repr(there.get(i))])
        known = {token.content: token for token in added.values()}
        wanted = [as_token(token, known) for token in special_tokens(settings)]
        self.library.add_special_tokens(wanted)
        return {name: text_of(token) for name, token in named_tokens(settings).items()}


def named_tokens(settings: dict[str, Any]) -> dict[str, Any]:
    """The special tokens that have a name: the usual ones, and those of a model's own."""
    own = [name for name in settings if name.endswith("_token") and name not in NAMED]
    more = settings.get("extra_special_tokens")
    tokens = {name: settings.get(name) for name in (*NAMED, *own)} | (more if isinstance(more, dict) else {})
    return {name: token for name, token in tokens.items() if isinstance(token, (str, dict))}


def special_tokens(settings: dict[str, Any]) -> list[Any]:
    """Those, and the lists of more."""
    more = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return [*named_tokens(settings).values(), *(more if isinstance(more, list) else [])]


def text_of(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def as_token(token: str | dict[str, Any], known: dict[str, Any]) -> Any:
    """With the properties that the settings give it, or that it has already."""
    if isinstance(token, dict):
        return AddedToken(
            **{key: value for key, value in token.items() if key not in ("__type", "special")}, special=True
        )
    return known.get(token) or AddedToken(token, special=True, normalized=False)


def chat_templates(folder: Path, settings: dict[str, Any]) -> str | dict[str, str] | None:
    """Files go before the settings, in which several templates are a list."""
    more = (folder / "additional_chat_templates").glob("*.jinja")
    files = {path.stem: path for path in more if path.is_file()}
    if (folder / "chat_template.jinja").exists():
        files["default"] = folder / "chat_template.jinja"
    templates = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    stated = settings.get("chat_template")
    if isinstance(stated, list):
        stated = {template["name"]: template["template"] for template in stated}
    if templates.keys() == {"default"}:
        return templates["default"]
    return templates or stated


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file."""
    if not path.exists():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return value
