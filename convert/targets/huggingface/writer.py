"""A whole folder: shards of tensors, and the files beside them that a runtime or a tokenizer reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...files.disk import open_regular
from ...files.written import Written
from ...models.encoder_head import EncoderHead
from ...models.ends import Embedding, Head
from ...sources.tokenizer import tokenizer_files
from ..base import Tensors
from .config import LARGEST_BESIDE
from .shards import Shards
from .target import HuggingFace


class Files:
    """A folder while it is filled. What stands around the layers is the source's, untouched."""

    def __init__(self, shards: Shards, target: HuggingFace):
        self.shards, self.target = shards, target

    @staticmethod
    @contextmanager
    def made(folder: Path, target: HuggingFace) -> Iterator[Files]:
        """New files in a folder; closed whatever comes."""
        with Shards.made(folder, target.specs(), target.shard_size) as shards:
            yield Files(shards, target)

    def write_embedding(self, embedding: Embedding) -> None:
        for name, tensor in self.target.ends():
            self.shards.write({name: tensor})

    def write_layer(self, index: int, tensors: Tensors) -> None:
        self.shards.write(tensors)

    def write_head(self, head: Head) -> None:
        """It is written already."""

    def write_encoder_head(self, head: EncoderHead) -> None:
        raise AssertionError("encoders are refused before")

    def finish(self, written: Written) -> None:
        self.shards.finish(written)
        for path in tokenizer_files(self.target.source.folder):
            written.add(copied(path, self.shards.folder / path.name))


def copied(source: Path, to: Path) -> Path:
    """A copy of a regular file of bounded size."""
    with open_regular(source) as file, to.open("wb") as copy:
        left = LARGEST_BESIDE
        while left and (piece := file.read(min(left, 1 << 20))):
            copy.write(piece)
            left -= len(piece)
    return to
