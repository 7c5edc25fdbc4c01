"""A safetensors file, opened once, its header held against its size, its tensors read one at a time."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...plugins.lazy import torch
from ..errors import InputError, shown
from .disk import LARGEST_JSON, refuse_constant, unique
from .pinned import Pinned

# Bits of one element, by safetensors' name of its dtype.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip
# PyTorch's names of those that can be read.
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F16": "float16", "BF16": "bfloat16", "F32": "float32",
    "F64": "float64",
}  # fmt: skip
LARGEST_SIZE = 2**63 - 1


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies.

    Attributes:
        dtype: safetensors' name.
        shape: its sizes.
        start, size: in bytes, from the beginning of the file.
    """

    dtype: str
    shape: list[int]
    start: int
    size: int


class Shard:
    """The tensors of a safetensors file by name.

    Attributes:
        tensors: where each lies.
        metadata: what the header says besides.

    Raises:
        InputError: no whole safetensors file: tensors must fill it without gap or overlap, each as large as its
            dtype and shape say, no name given twice.
    """

    def __init__(self, path: Path, what: str = ""):
        self.file = Pinned(path, what)
        try:
            self.tensors, self.metadata = self._layout()
        except (ValueError, RecursionError) as error:
            self.close()
            raise InputError(f"{self.file.name}: not a whole safetensors file ({shown(str(error))})") from None

    def close(self) -> None:
        self.file.close()

    def forms(self) -> dict[str, tuple[list[int], str]]:
        """(shape, dtype) of every tensor, by name; dtypes as safetensors calls them."""
        return {name: (tensor.shape, tensor.dtype) for name, tensor in self.tensors.items()}

    def read(self, name: str, rows: int | None = None, pinned: bool = False) -> torch.Tensor:
        """One tensor, in memory of its own.

        Args:
            rows: so many of its first rows, if not all.
            pinned: in memory that a GPU copies from at its full rate.

        Raises:
            InputError: it is not there, of a dtype that PyTorch lacks, or the file changed.
        """
        stored = self.tensors.get(name)
        if stored is None or stored.dtype not in DTYPES:
            reason = "is not there" if stored is None else f"is {stored.dtype}, which cannot be read"
            raise InputError(f"{self.file.name}: tensor {shown(name)} {reason}")
        shape, size = stored.shape, stored.size
        if rows is not None and rows < shape[0]:
            shape, size = [rows, *shape[1:]], size // shape[0] * rows
        data = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self.file.read_into(data.numpy().data, stored.start)
        return data.view(getattr(torch, DTYPES[stored.dtype])).view(shape)

    def _layout(self) -> tuple[dict[str, Stored], dict[str, str]]:
        """Tensors and metadata, from the header; ValueError says what is wrong with it."""
        if self.file.size < 8:
            raise ValueError("shorter than a header")
        length = int.from_bytes(self.file.read(0, 8), "little")
        if length > min(LARGEST_JSON, self.file.size - 8):
            raise ValueError(f"its header would have {length} bytes")
        text = self.file.read(8, length).decode("utf-8")
        header = json.loads(text, object_pairs_hook=unique, parse_constant=refuse_constant)
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are no texts")
        tensors = {name: stored(name, entry, 8 + length) for name, entry in header.items()}
        end = 8 + length
        for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
            if tensor.start != end:
                raise ValueError(f"tensor {shown(name)} leaves a gap or overlaps another")
            end += tensor.size
        if end != self.file.size:
            raise ValueError(f"its tensors end at byte {end}, the file at {self.file.size}")
        return tensors, metadata


def stored(name: str, entry: Any, base: int) -> Stored:
    """One entry of a header; offsets count from ``base``. ValueError says what is wrong with it."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {shown(name)} has not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"tensor {shown(name)} is of dtype {shown(dtype)}")
    if not sizes(shape) or not sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {shown(name)} has no sizes in its shape or offsets")
    bits, size = math.prod(shape) * BITS[dtype], offsets[1] - offsets[0]
    if bits % 8 or bits // 8 != size:
        raise ValueError(f"tensor {shown(name)} is not as large as its shape")
    return Stored(dtype, shape, base + offsets[0], size)


def sizes(value: Any) -> bool:
    """Whether it is a short list of whole numbers that no file's size exceeds."""
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(type(size) is int and 0 <= size <= LARGEST_SIZE for size in value)
    )
