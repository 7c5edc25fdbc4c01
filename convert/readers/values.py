"""The values of small tensors, without PyTorch."""

from __future__ import annotations

from typing import Any

from ...plugins.lazy import numpy as np
from ..errors import InputError, shown
from ..files.shard import Shard

DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I8": "i1", "U8": "u1", "I32": "<i4", "I64": "<i8"}
# Bytes of a tensor of scales, or of zero points.
MOST = 2**28
# Of float16: the smallest number with all its digits, and the largest.
SMALLEST, LARGEST = 2.0**-14, 65504.0


def read(shard: Shard, name: str) -> np.ndarray[Any, Any]:
    """A tensor's values, in one row.

    Raises:
        InputError: it is of a dtype, or a size, that no scales or zero points have.
    """
    stored = shard.tensors[name]
    if stored.size > MOST:
        raise InputError(f"{shard.file.name}: tensor {shown(name)} is larger than scales and zero points are")
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


def symmetric_zeros(packed: np.ndarray[Any, Any], one_less: bool) -> bool:
    """Whether zero points, eight a word, are those of symmetric weights: all 8.

    Args:
        one_less: 7 is as good, as GPTQ's format stores them.
    """
    pairs = packed.view(np.uint8)
    return bool((pairs == 0x88).all() or (one_less and (pairs == 0x77).all()))
