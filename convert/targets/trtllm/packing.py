"""Integers as TensorRT-LLM's weight-only kernels read them, of sizes and for GPUs that these take."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....plugins import packing
from ....plugins.lazy import torch
from ....plugins.packing import INT4_FP8, Layout, generation, layout_of
from ...errors import InputError
from ...numbers.nibbles import check_multiple, pack_rows

# The GPU generations that checkpoints are arranged for.
GENERATIONS = (80, 86, 89, 90)


def arrangement(sm: int) -> str:
    """The generation whose order an SM reads: integers arranged for one fit all of its SMs."""
    return "SM 90" if sm == 90 else "SM 75 to 89"


def check(layout: Layout, sm: int, shape: Sequence[int], name: str = "weight") -> None:
    """Raise InputError, naming sizes that work, unless this GPU's kernels take a weight [(experts,) out, in]."""
    if not 70 <= sm <= 90:
        raise InputError(f"{name}: no {layout.name} weight layout for SM {sm}; supported are SM 70 to 90")
    if layout is INT4_FP8 and sm < 89:
        raise InputError(f"{name}: FP8 activations need SM 89 or 90, not SM {sm}")
    inner, outer = layout.multiples[generation(sm, len(shape)) == 90]
    reader = f"the {layout.name} layout of SM {sm}"
    check_multiple(f"{name}: in_features", shape[-1], inner, reader)
    check_multiple(f"{name}: out_features", shape[-2], outer, reader)


def pack(
    integers: torch.Tensor, layout: Layout, sm: int, dtype: torch.dtype | None = None, name: str = "weight"
) -> torch.Tensor:
    """``plugins.packing.pack``, of what the kernels take.

    Args:
        name: of the tensor, for messages.

    Raises:
        InputError: a shape or GPU that they do not.
    """
    check(layout, sm, integers.shape, name)
    return packing.pack(integers, layout, sm, dtype)


def unpack(packed: torch.Tensor, layout: Layout, sm: int, name: str = "weight") -> torch.Tensor:
    """The inverse of ``pack``: int8 [(experts,) out, in] from the bytes in whatever dtype they are viewed as."""
    *experts, in_features, _ = packed.shape
    values = packed.nbytes * 8 // layout.bits
    check(layout, sm, (*experts, values // (math.prod(experts) * in_features), in_features), name)
    return packing.unpack(packed, layout, sm)


def arranged(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, str]:
    """Integers in the order that this project's own kernels read fastest, whatever the GPU, and their name for it.

    Args:
        weight: int8 [out, in].
    """
    if bits == 4:
        return pack_rows(weight), packing.ROWS
    return pack(weight, layout_of(bits), 90, torch.int8), "sm90"
