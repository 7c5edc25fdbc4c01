"""Integers as TensorRT-LLM's weight-only kernels read them.

The logical weight is q[out, in], signed. A mixed GEMM (float activations, integer weights) reads it as one stream
of 32-bit words, arranged for the tensor cores of one GPU generation:

    1. permute   inside every g input channels, slot i takes channel rows[i]
    2. transpose input channels become the fast axis (ours are, already)
    3. interleave [out / I, I, in / R, R] -> [out / I, in / R, I, R]: I outputs take turns, R inputs at a time
    4. bias      add 2^(b-1), so that values are unsigned, and in every word slot d takes element word[d]

SM 75 to 89 take all four steps, SM 90 step 2 alone (values stay signed), SM 70 to 74 steps 2 and 4. The stream is
stored under the shape [in, out * b / 8] that it had before; it is that shape in name only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .errors import InputError


@dataclass(frozen=True)
class Layout:
    """How one kind of mixed GEMM arranges its weights.

    Attributes:
        name: for messages.
        bits: b, 8 or 4.
        rows: the permutation of step 1.
        interleave: I of step 3.
        tile: R of step 3, in values.
        word: the order of step 4.
        multiples: what (in, out) must be multiples of for SM 70 to 89, and for SM 90.
    """

    name: str
    bits: int
    rows: tuple[int, ...]
    interleave: int
    tile: int
    word: tuple[int, ...]
    multiples: tuple[tuple[int, int], tuple[int, int]]


def _pairs(step: int, starts: range) -> tuple[int, ...]:
    """Neighbours two by two, from blocks ``step`` apart: (0, 1, step, step + 1, ..., 2, 3, step + 2, ...)."""
    return tuple(block + start + i for start in range(0, step, 2) for block in starts for i in (0, 1))


INT8 = Layout("int8", 8, _pairs(8, range(0, 16, 8)), 2, 64, (0, 2, 1, 3), ((64, 32), (32, 32)))
INT4 = Layout("int4", 4, _pairs(8, range(0, 32, 8)), 4, 64, (0, 2, 4, 6, 1, 3, 5, 7), ((64, 64), (64, 64)))
# 4-bit weights whose activations the kernel converts to FP8 (W4A8_AWQ).
INT4_FP8 = Layout(
    "int4 with FP8 activations",
    4,
    tuple(block + start + i for start in range(0, 16, 4) for block in (0, 16) for i in range(4)),
    2,
    128,
    (0, 2, 4, 6, 1, 3, 5, 7),
    ((128, 64), (64, 64)),
)


def pack_nibbles(values: torch.Tensor) -> torch.Tensor:
    """Two 4-bit values a byte along the last axis, the even one in the low nibble.

    Args:
        values: int8 [..., n], n even; only the low four bits of each count.

    Returns:
        int8 [..., n / 2].
    """
    low, high = values.view(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
    packed: torch.Tensor = low & 15 | high << 4
    return packed.view(torch.int8)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The signed values of ``pack_nibbles``: int8 [..., n / 2] -> int8 [..., n], each in [-8, 7]."""
    return torch.stack((packed << 4 >> 4, packed >> 4), -1).flatten(-2)


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


def unpack_rows(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of ``pack_rows``: int8 [out / 2, in] -> int8 [out, in]."""
    return unpack_nibbles(packed.t()).t().contiguous()


def check(layout: Layout, sm: int, out_features: int, in_features: int, name: str = "weight") -> None:
    """Raise InputError, naming sizes that work, unless the kernels for this GPU take a weight of this shape."""
    if not 70 <= sm <= 90:
        raise InputError(f"{name}: no {layout.name} weight layout for SM {sm}; supported are SM 70 to 90")
    if layout is INT4_FP8 and sm < 89:
        raise InputError(f"{name}: FP8 activations need SM 89 or 90, not SM {sm}")
    for axis, size, multiple in zip(
        ("in_features", "out_features"), (in_features, out_features), layout.multiples[sm == 90], strict=True
    ):
        if size < 1 or size % multiple:
            below, above = size // multiple * multiple, (size // multiple + 1) * multiple
            raise InputError(
                f"{name}: {axis} {size} must be a multiple of {multiple} for the {layout.name} layout of SM {sm}; "
                f"sizes that work: {f'{below}, ' if below else ''}{above}"
            )


def pack(
    integers: torch.Tensor, layout: Layout, sm: int, dtype: torch.dtype = torch.int8, name: str = "weight"
) -> torch.Tensor:
    """The stream that a mixed GEMM on this GPU reads.

    Args:
        integers: int8 [out, in], or [experts, out, in], whose SM 90 layout is that of SM 80.
        sm: compute capability times ten.
        dtype: what the bytes are viewed as: int8, or the model's dtype for group-wise plugins.
        name: of the tensor, for messages.

    Returns:
        [(experts,) in, out * bits / 8 / itemsize] in ``dtype``.

    Raises:
        InputError: a shape or GPU that the kernels do not take.
    """
    *experts, out_features, in_features = integers.shape
    check(layout, sm, out_features, in_features, name)
    q = integers
    if _interleaved(sm, integers.dim()):
        q = q.unflatten(-1, (-1, len(layout.rows)))[..., list(layout.rows)].flatten(-2)
        q = q.unflatten(-2, (-1, layout.interleave)).unflatten(-1, (-1, layout.tile)).transpose(-3, -2)
    if _biased(sm, integers.dim()):
        q = q.reshape(-1, len(layout.word))[:, list(layout.word)] ^ _sign_bit(layout)
    stream = q.reshape(*experts, in_features, out_features)
    return (pack_nibbles(stream) if layout.bits == 4 else stream.contiguous()).view(dtype)


def unpack(packed: torch.Tensor, layout: Layout, sm: int, name: str = "weight") -> torch.Tensor:
    """The inverse of ``pack``: int8 [(experts,) out, in] from the bytes in whatever dtype they are viewed as."""
    stream = packed.contiguous().view(torch.int8)
    stream = unpack_nibbles(stream) if layout.bits == 4 else stream
    *experts, in_features, out_features = stream.shape
    check(layout, sm, out_features, in_features, name)
    q = stream
    if _biased(sm, packed.dim()):
        q = _signed(q.reshape(-1, len(layout.word))[:, _inverse(layout.word)] ^ _sign_bit(layout), layout.bits)
    if not _interleaved(sm, packed.dim()):
        return q.reshape(*experts, out_features, in_features)
    shape = (*experts, out_features // layout.interleave, in_features // layout.tile, layout.interleave, layout.tile)
    q = q.reshape(shape).transpose(-3, -2).reshape(*experts, out_features, -1, len(layout.rows))
    return q[..., _inverse(layout.rows)].flatten(-2)


def _interleaved(sm: int, dimensions: int) -> bool:
    return 75 <= sm < 90 or (sm == 90 and dimensions == 3)


def _biased(sm: int, dimensions: int) -> bool:
    return sm < 90 or dimensions == 3


def _sign_bit(layout: Layout) -> int:
    """Flipping it in two's complement adds 2^(b-1) modulo 2^b."""
    return -128 if layout.bits == 8 else 8


def _signed(values: torch.Tensor, bits: int) -> torch.Tensor:
    return values << 8 - bits >> 8 - bits


def _inverse(permutation: tuple[int, ...]) -> list[int]:
    return sorted(range(len(permutation)), key=permutation.__getitem__)
