"""Files of tensors under Hugging Face's names: as many as their largest size asks for, and an index where several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from ...files.disk import ITEM_SIZE, write_json
from ...files.tensors import TensorFile, prod
from ...files.written import Written
from .format import Spec

ONE, SEVERAL, INDEX = "model.safetensors", "model-{:05d}-of-{:05d}.safetensors", "model.safetensors.index.json"
# What transformers wants a header to say.
METADATA = {"format": "pt"}


class Shards:
    """Every file of a folder's tensors, open.

    Args:
        files: by name of each tensor.
    """

    def __init__(self, folder: Path, files: Mapping[str, TensorFile]):
        self.folder, self.files = folder, files

    @staticmethod
    @contextmanager
    def made(folder: Path, specs: Mapping[str, Spec], most: int) -> Iterator[Shards]:
        """New files; closed whatever comes.

        Args:
            specs: everything that they will hold, in order.
            most: bytes of one file's tensors, if no single one is larger.
        """
        pieces = list(split(specs, most))
        with ExitStack() as opened:
            files: dict[str, TensorFile] = {}
            for number, piece in enumerate(pieces, 1):
                name = ONE if len(pieces) == 1 else SEVERAL.format(number, len(pieces))
                file = TensorFile(folder / name, piece, METADATA)
                opened.callback(file.abandon)
                files |= dict.fromkeys(piece, file)
            yield Shards(folder, files)

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Store tensors, by name."""
        for name, tensor in tensors.items():
            self.files[name].write(name, tensor)

    def finish(self, written: Written) -> None:
        """Close the files, each of which must be complete by now, and write their index."""
        files = list(dict.fromkeys(self.files.values()))
        for file in files:
            written.add(file.path, file.close())
        if len(files) > 1:
            total = sum(file.size - file.start for file in files)
            where = {name: file.path.name for name, file in self.files.items()}
            write_json(self.folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
            written.add(self.folder / INDEX)


def split(specs: Mapping[str, Spec], most: int) -> Iterator[dict[str, Spec]]:
    """Tensors in order, as many together as fit into so many bytes."""
    piece: dict[str, Spec] = {}
    size = 0
    for name, (shape, dtype) in specs.items():
        own = prod(shape) * ITEM_SIZE[dtype]
        if piece and size + own > most:
            yield piece
            piece, size = {}, 0
        piece[name] = (shape, dtype)
        size += own
    yield piece
