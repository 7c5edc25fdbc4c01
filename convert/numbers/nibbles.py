"""Two rows of 4-bit integers a byte, and what sizes must be multiples of."""

from __future__ import annotations

from ...plugins.lazy import torch
from ...plugins.nibbles import pack_nibbles
from ..errors import InputError


def pack_rows(integers: torch.Tensor, name: str = "weight") -> torch.Tensor:
    """AWQ's storage, independent of the GPU: row 2j in the low nibble, row 2j + 1 in the high one.

    Args:
        integers: int8 [out, in], in [-8, 7].
        name: of the tensor, for messages.

    Returns:
        int8 [out / 2, in].
    """
    if integers.shape[0] % 2:
        raise InputError(f"{name}: two output rows share a byte, so their number must be even, not {len(integers)}")
    return pack_nibbles(integers.t().contiguous()).t().contiguous()


def check_multiple(what: str, size: int, multiple: int, reader: str) -> None:
    """Raise InputError, naming the sizes around that work, unless size is a multiple."""
    if size < 1 or size % multiple:
        around = [near for near in (size // multiple * multiple, (size // multiple + 1) * multiple) if near > 0]
        raise InputError(
            f"{what} {size} must be a multiple of {multiple} for {reader}; sizes that work: "
            f"{', '.join(map(str, around))}"
        )
