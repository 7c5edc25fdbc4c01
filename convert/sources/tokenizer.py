"""The tokenizer of a Hugging Face folder, which may be anybody's: none of its code runs, its faults are one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError, reason
from ..files.bounded import processor_limit
from ..files.disk import is_there, shown_path

ENDINGS, LARGEST_FILE = (".json", ".jinja", ".model", ".txt"), 2**28
# Of the tokenizer, the chat and generation.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
    "chat_template.json", "generation_config.json",
)  # fmt: skip
# For one chat; templates are programs.
RENDERING_SECONDS = 10.0
LARGEST_CHAT = 2**24


class Tokenizer:
    """A folder's tokenizer, opened when it is first used.

    Args:
        flag: the option that wants it, for messages.
    """

    def __init__(self, folder: Path, flag: str):
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        self.folder, self.flag, self.open = folder, flag, AutoTokenizer.from_pretrained

    @cached_property
    def loaded(self) -> Any:
        """transformers' tokenizer."""
        refuse_odd_files(self.folder, self.flag)
        remedy = "add tokenizer.json, or give token ids in a safetensors file"
        with self._one_line(f"no usable tokenizer for {self.flag}", remedy):
            return self.open(self.folder, local_files_only=True, trust_remote_code=False)

    @cached_property
    def front(self) -> list[int]:
        """The token that begins every prompt, where the tokenizer adds one."""
        with self._one_line(f"its tokenizer cannot read what {self.flag} begins with"):
            bos = self.loaded.bos_token_id
            empty = self.loaded("")["input_ids"]
            adds = getattr(self.loaded, "add_bos_token", False) is True or empty[:1] == [bos]
            return [bos] if bos is not None and adds else []

    @property
    def writes_tools(self) -> bool:
        """Whether the chat template looks at tools."""
        templates = self.loaded.chat_template or ""
        return any("tools" in text for text in (templates.values() if isinstance(templates, dict) else [templates]))

    def ids(self, text: str) -> list[int]:
        """The text's tokens, without special ones that are not written in it."""
        with self._one_line(f"its tokenizer cannot read the text of {self.flag}"):
            ids: list[int] = self.loaded(text, add_special_tokens=False, verbose=False)["input_ids"]
            return ids

    def render(self, messages: list[Any], where: str, **variables: Any) -> str:
        """A chat as its template writes it, without the token that begins every prompt anyway.

        The template runs in transformers' sandbox, and in limited time.

        Args:
            where: it stands, for messages.
            variables: of the template, and what transformers' apply_chat_template takes besides.
        """
        if not self.loaded.chat_template:
            raise InputError(
                f"{where}: holds messages, and the tokenizer in {shown_path(self.folder)} has no chat template; add "
                "its chat_template.jinja, or give records with text"
            )
        with self._one_line(f"its chat template does not render {where}"), processor_limit(RENDERING_SECONDS):
            try:
                text = str(self.loaded.apply_chat_template(messages, tokenize=False, **variables))
            except MemoryError:
                raise ValueError("it writes more than memory holds") from None
            if len(text) > LARGEST_CHAT:
                raise ValueError(f"it writes {len(text)} characters; at most {LARGEST_CHAT} are read")
            text.encode()
        return text.removeprefix(self.loaded.bos_token) if self.front else text

    @contextmanager
    def _one_line(self, what: str, remedy: str = "") -> Iterator[None]:
        """Whatever transformers, its Rust library's panics included, or a template raises is the folder's fault."""
        try:
            yield
        except (InputError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            raise InputError(
                f"{shown_path(self.folder)}: {what} ({reason(error)}){'; ' + remedy if remedy else ''}"
            ) from None


def tokenizer_files(folder: Path) -> list[Path]:
    """What belongs to the tokenizer; a model's folder holds its weights too."""
    named = [folder / name for name in TOKENIZER_FILES if is_there(folder / name)]
    return named + sorted(folder.glob("*.tiktoken"))


def refuse_odd_files(folder: Path, flag: str) -> None:
    """Raise InputError for what no tokenizer has: huge files, pipes, devices.

    Args:
        flag: what named the folder, for messages.
    """
    for path in (*folder.glob("*"), *folder.glob("additional_chat_templates/*")):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{flag}: {shown_path(path)}: not a regular file")
        if path.suffix in ENDINGS and path.is_file() and path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{flag}: {shown_path(path)}: larger than any tokenizer's file ({LARGEST_FILE >> 20} MiB)")
