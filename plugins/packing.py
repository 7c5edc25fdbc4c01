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

from .lazy import torch
from .nibbles import pack_nibbles, unpack_nibbles, unpack_rows


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
        multiples: what (in, out) must be multiples of up to SM 89, and where step 2 is all there is.
    """

    name: str
    bits: int
    rows: tuple[int, ...]
    interleave: int
    tile: int
    word: tuple[int, ...]
    multiples: tuple[tuple[int, int], tuple[int, int]]


def _runs(length: int, block: int, channels: int) -> tuple[int, ...]:
    """Runs of neighbours, one from each block in turn: for 2, 8 and 16 that is 0 1 8 9 2 3 10 11 ..."""
    starts = (start + run for run in range(0, block, length) for start in range(0, channels, block))
    return tuple(start + i for start in starts for i in range(length))


INT8 = Layout("int8", 8, _runs(2, 8, 16), 2, 64, (0, 2, 1, 3), ((64, 32), (32, 32)))
INT4 = Layout("int4", 4, _runs(2, 8, 32), 4, 64, (0, 2, 4, 6, 1, 3, 5, 7), ((64, 64), (64, 64)))
# 4-bit weights whose activations the kernel converts to FP8 (W4A8_AWQ).
INT4_FP8 = Layout(
    "int4 with FP8 activations", 4, _runs(4, 16, 32), 2, 128, (0, 2, 4, 6, 1, 3, 5, 7), ((128, 64), (64, 64))
)


def layout_of(bits: int, fp8: bool = False) -> Layout:
    """The order of integers of 4 or 8 bits; fp8: of those whose activations the kernel converts."""
    if bits == 8:
        return INT8
    return INT4_FP8 if fp8 else INT4


def pack(integers: torch.Tensor, layout: Layout, sm: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The stream that a mixed GEMM on this GPU reads.

    Args:
        integers: int8 [out, in], or [experts, out, in].
        sm: compute capability times ten.
        dtype: what the bytes are viewed as: int8 if None, or the model's dtype for group-wise plugins.

    Returns:
        [(experts,) in, out * bits / 8 / itemsize] in ``dtype``.
    """
    *experts, out_features, in_features = integers.shape
    q, order = integers, generation(sm, integers.dim())
    if 75 <= order < 90:
        q = q.unflatten(-1, (-1, len(layout.rows)))[..., list(layout.rows)].flatten(-2)
        q = q.unflatten(-2, (-1, layout.interleave)).unflatten(-1, (-1, layout.tile)).transpose(-3, -2)
    if order < 90:
        q = q.reshape(-1, len(layout.word))[:, list(layout.word)] ^ _sign_bit(layout)
    stream = q.reshape(*experts, in_features, out_features)
    return (pack_nibbles(stream) if layout.bits == 4 else stream.contiguous()).view(dtype or torch.int8)


def unpack(packed: torch.Tensor, layout: Layout, sm: int) -> torch.Tensor:
    """The inverse of ``pack``: int8 [(experts,) out, in] from the bytes in whatever dtype they are viewed as."""
    stream = packed.contiguous().view(torch.int8)
    stream = unpack_nibbles(stream) if layout.bits == 4 else stream
    *experts, in_features, out_features = stream.shape
    q, order = stream, generation(sm, packed.dim())
    if order < 90:
        q = _signed(q.reshape(-1, len(layout.word))[:, _inverse(layout.word)] ^ _sign_bit(layout), layout.bits)
    if not 75 <= order < 90:
        return q.reshape(*experts, out_features, in_features)
    shape = (*experts, out_features // layout.interleave, in_features // layout.tile, layout.interleave, layout.tile)
    q = q.reshape(shape).transpose(-3, -2).reshape(*experts, out_features, -1, len(layout.rows))
    return q[..., _inverse(layout.rows)].flatten(-2)


def generation(sm: int, dimensions: int) -> int:
    """The SM whose layout is used: experts stay with that of SM 80 on SM 90."""
    return 80 if sm == 90 and dimensions == 3 else sm


def _sign_bit(layout: Layout) -> int:
    """Flipping it in two's complement adds 2^(b-1) modulo 2^b."""
    return -128 if layout.bits == 8 else 8


def _signed(values: torch.Tensor, bits: int) -> torch.Tensor:
    return values << 8 - bits >> 8 - bits


def _inverse(permutation: tuple[int, ...]) -> list[int]:
    return sorted(range(len(permutation)), key=permutation.__getitem__)


# Orders of packed integers: AWQ's files have two rows a byte, the rest are streams of mixed GEMMs.
ROWS, STREAMS = "rows", {"sm80": (80, False), "sm90": (90, False), "fp8": (89, True)}
ORDERS = (ROWS, *STREAMS)


def unpacked(packed: torch.Tensor, shape: tuple[int, int], bits: int, layout: str) -> torch.Tensor:
    """int8 [out, in] of integers in one of these orders.

    Args:
        packed: whatever dtype and shape their bytes are viewed as.
        shape: (out, in).
    """
    held, (out, channels) = packed.reshape(-1).view(torch.int8), shape
    if layout == ROWS:
        return unpack_rows(held.view(-1, channels))
    sm, fp8 = STREAMS[layout]
    return unpack(held.view(channels, -1), layout_of(bits, fp8), sm).reshape(out, channels)
