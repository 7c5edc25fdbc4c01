"""The values of small tensors, without PyTorch."""

from __future__ import annotations

from typing import Any

from ...plugins.lazy import numpy as np
from ..errors import InputError, shown
from ..files.shard import Shard

DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I8": "i1", "U8": "u1", "I32": "<i4", "I64": "<i8"}
# Of float16: the smallest number with all its digits, and the largest.
SMALLEST, LARGEST = 2.0**-14, 65504.0


def read(shard: Shard, name: str) -> np.ndarray[Any, Any]:
    """A tensor's values, in one row.

    Raises:
        InputError: they are of a dtype in which nobody keeps scales or zero points.
    """
    stored = shard.tensors[name]
    data = shard.file.read(stored.start, stored.size)
    if stored.dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    if stored.dtype not in DTYPES:
        raise InputError(f"{shard.file.name}: tensor {shown(name)} is {stored.dtype}, which cannot be read")
    return np.frombuffer(data, DTYPES[stored.dtype])


def beyond_float16(scales: np.ndarray[Any, Any]) -> bool:
    """Whether some are too small for float16 to keep their digits, or too large for it."""
    magnitude = np.abs(scales.astype(np.float64))
    return bool(((magnitude != 0) & ~((magnitude >= SMALLEST) & (magnitude <= LARGEST))).any())


def exact_in_float16(scales: np.ndarray[Any, Any]) -> bool:
    return bool((scales.astype(np.float16) == scales).all())


def symmetric_zeros(packed: np.ndarray[Any, Any]) -> bool:
    """Whether zero points of GPTQ's format, eight a word, are those of symmetric weights: all 8, or 7 with 1 to add."""
    nibbles = packed.view(np.uint8)
    return bool((nibbles == 0x77).all() or (nibbles == 0x88).all())
