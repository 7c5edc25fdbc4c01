"""GPTAttention on a GPU: ``store`` turns a pass's queries and keys and writes its keys and values into the KV cache;
``decode`` is attention of single tokens over the cache, in chunks of keys side by side and then over the chunks.

Tolerance: what ``store`` writes is equal to the bit to ``gpt_attention.split`` and ``stored``. ``decode`` computes
scores, weights and sums in float32, in another order than the reference and with the device's exp: before it is rounded
to the queries' dtype its output is within 5e-5 of the largest |value|, so that half-precision outputs are a step apart
at most where they do not cancel. Chunks depend on the sequence's own length and on constants: what is beside a sequence
in a batch changes none of its bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arithmetic_triton import NO_FRACTION
from .gpt_attention import Heads
from .kernels import cdiv, power_of_two
from .launches import Launches

# Channels of heads in one program of ``store``.
STORED = 1024
# Keys of one chunk at least, a multiple of every block; chunks of one sequence at most; bytes of keys in one block.
CHUNK: tl.constexpr = tl.constexpr(128)
CHUNKS: tl.constexpr = tl.constexpr(32)
BLOCK_BYTES = 16384
# Kinds of cache; a constant each, for kernels are compiled for one of them.
PLAIN: tl.constexpr = tl.constexpr(0)
INT8: tl.constexpr = tl.constexpr(1)
FP8: tl.constexpr = tl.constexpr(2)
KINDS = {None: PLAIN.value, "INT8": INT8.value, "FP8": FP8.value}


def store(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    places: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    of: Heads,
    scales: torch.Tensor | None = None,
    kind: str | None = None,
) -> torch.Tensor:
    """As ``kv_cache.reference_store``; nothing is read or written outside of tables and cache, whatever places say."""
    tokens, all_heads = len(qkv), of.heads + 2 * of.kv_heads
    q = qkv.new_empty(tokens, of.heads, of.size)
    columns = power_of_two(of.size)
    block = max(STORED // columns, 1)
    stores[(tokens, cdiv(all_heads, block))](
        qkv, cos, sin, places, slots, q, raw(keys), raw(values), scales, len(keys), keys.shape[2], len(cos),
        qkv.stride(0), HEADS=of.heads, KV_HEADS=of.kv_heads, SIZE=of.size, ROTATED=cos.shape[1],
        INTERLEAVED=of.interleaved, KIND=KINDS[kind], LAST=last(scales), BLOCK=block, COLUMNS=columns,
        enable_fp_fusion=False,
    )  # fmt: skip
    return q


def decode(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    of: Heads,
    scales: torch.Tensor | None = None,
    kind: str | None = None,
) -> torch.Tensor:
    """As ``kv_cache.reference_decode``; zeros come out for a slot that is none, and no more is read than there is room.

    Args:
        of: slopes are on q's device.
    """
    tokens, room, group = len(q), keys.shape[2], of.heads // of.kv_heads
    window = room if of.window is None else min(of.window, room)
    rows = 32 if group > 16 and q.element_size() == 2 else 16
    columns = max(power_of_two(of.size), 16)
    block = min(max(BLOCK_BYTES // (columns * q.element_size()), 16), 64)
    chunks = min(cdiv(window, CHUNK.value), CHUNKS.value)
    partial = q.new_empty((tokens, of.heads, chunks, of.size), dtype=torch.float32)
    best, total = q.new_empty((2, tokens, of.heads, chunks), dtype=torch.float32)
    out = q.new_empty(tokens, of.heads * of.size)
    shape = {"HEADS": of.heads, "SIZE": of.size, "COLUMNS": columns}
    chunk_kernel[(tokens, of.kv_heads * cdiv(group, rows), chunks)](
        q, raw(keys), raw(values), slots, lengths, scales, of.slopes, partial, best, total, len(keys), room, window,
        of.scale, of.cap or 0.0, KV_HEADS=of.kv_heads, ROWS=rows, BLOCK=block, KIND=KINDS[kind], LAST=last(scales),
        CAPPED=of.cap is not None, SLOPED=of.slopes is not None, num_warps=4, num_stages=2,
        enable_fp_fusion=True, **shape,
    )  # fmt: skip
    merge_kernel[(tokens, of.heads)](
        partial,
        best,
        total,
        slots,
        lengths,
        out,
        len(keys),
        room,
        window,
        chunks,
        enable_fp_fusion=True,
        num_warps=4,
        **shape,
    )
    return out


def raw(held: torch.Tensor) -> torch.Tensor:
    """e4m3 as its bytes: the kernels make them with integers, for Ampere has no conversion."""
    return held.view(torch.uint8) if held.dtype == torch.float8_e4m3fn else held


def last(scales: torch.Tensor | None) -> int:
    """Where the values' scale is."""
    return 0 if scales is None else scales.numel() - 1


@triton.jit(do_not_specialize=("count", "longest"))  # type: ignore[untyped-decorator]
def store_kernel(  # type: ignore[no-untyped-def]
    qkv, cos, sin, places, slots, q, keys, values, scales, count, room, longest, stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr,
    KIND: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Some heads of one token."""
    token = tl.program_id(0).to(tl.int64)
    place, slot = tl.load(places + token).to(tl.int64), tl.load(slots + token).to(tl.int64)
    head, channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None], tl.arange(0, COLUMNS)[None, :]
    there = (head < HEADS + 2 * KV_HEADS) & (channel < SIZE)
    turns = (head < HEADS + KV_HEADS) & (channel < ROTATED)
    own = qkv + token * stride + head * SIZE
    x = tl.load(own + channel, mask=there, other=0.0).to(tl.float32)
    if INTERLEAVED:
        first, other = channel % 2 == 0, channel ^ 1
    else:
        first = channel < ROTATED // 2
        other = tl.where(first, channel + ROTATED // 2, channel - ROTATED // 2)
    crossed = tl.load(own + other, mask=turns, other=0.0).to(tl.float32)
    crossed *= tl.where(first, -1.0, 1.0)  # a minus would make 0 of 0
    angle = place * ROTATED + channel
    tabled = (channel < ROTATED) & (place >= 0) & (place < longest)
    cosine = tl.load(cos + angle, mask=tabled, other=1.0)
    sine = tl.load(sin + angle, mask=tabled, other=0.0)
    x = tl.where(turns, x * cosine + crossed * sine, x).to(q.dtype.element_ty)
    tl.store(q + (token * HEADS + head) * SIZE + channel, x, mask=there & (head < HEADS))
    is_key = head < HEADS + KV_HEADS
    if KIND != PLAIN:
        scale = tl.where(is_key, tl.load(scales), tl.load(scales + LAST))
        held = quantized(tl.div_rn(x.to(tl.float32), scale + tl.zeros_like(x).to(tl.float32)), KIND)
    else:
        held = x.to(tl.float32).to(keys.dtype.element_ty)
    if (slot >= 0) & (slot < count) & (place >= 0) & (place < room):
        kv_head = tl.where(is_key, head - HEADS, head - HEADS - KV_HEADS)
        where = ((slot * KV_HEADS + kv_head) * room + place) * SIZE + channel
        tl.store(keys + where, held, mask=there & is_key & (head >= HEADS))
        tl.store(values + where, held, mask=there & (head >= HEADS + KV_HEADS))


stores = Launches(store_kernel)


@triton.jit  # type: ignore[untyped-decorator]
def quantized(x, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """int8, rounded half to even and saturated; or the byte of the nearest e4m3, saturated at 448."""
    if KIND == INT8:
        x = tl.minimum(tl.maximum(x, -128.0), 127.0)
        made = ((x + NO_FRACTION) - NO_FRACTION).to(tl.int8)
    else:
        size = tl.minimum(tl.abs(x), 448.0)
        bits = size.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)  # 3 bits of 23; a bias of 7 for 127
        small = (size + 16384.0).to(tl.int32, bitcast=True) & 0xF  # in steps of 2^-9, those of 2^14's last bit
        byte = tl.where(size < 0.015625, small, normal)
        byte = tl.where(x == x, byte, 0x7F)
        made = (byte | ((x.to(tl.int32, bitcast=True) >> 24) & 0x80)).to(tl.uint8)
    return made


@triton.jit  # type: ignore[untyped-decorator]
def as_operand(held, dtype: tl.constexpr, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """What the cache holds, without its scale, in the dtype of queries, which holds every INT8 and e4m3."""
    if KIND == FP8:
        # Sign, exponent and fraction where float16 has them: 2^8 too small, for its bias is 15 and not 7.
        byte = held.to(tl.int16)
        bits = ((byte & 0x80) << 8) | ((byte & 0x7F) << 7)
        value = bits.to(tl.float16, bitcast=True) * 256.0
        held = tl.where((byte & 0x7F) == 0x7F, float("nan"), value)
    elif KIND == INT8:
        # As the last bits of 2^23 + 128, from which it is taken: additions are faster than conversions.
        held = (held.to(tl.int32) + 0x4B000080).to(tl.float32, bitcast=True) - 8388736.0
    return held.to(dtype)


@triton.jit
def sequence(slots, lengths, token, count, room):  # type: ignore[no-untyped-def]
    """A token's slot, and how much of its sequence lies there: nothing where there is no such slot."""
    slot = tl.load(slots + token).to(tl.int64)
    length = tl.minimum(tl.maximum(tl.load(lengths + token), 0), room).to(tl.int32)
    return slot, tl.where((slot >= 0) & (slot < count), length, 0)


@triton.jit
def chunk_size(seen):  # type: ignore[no-untyped-def]
    """Keys of each chunk of so many."""
    return tl.cdiv(tl.cdiv(seen, CHUNKS), CHUNK) * CHUNK


@triton.jit(do_not_specialize=("count",))  # type: ignore[untyped-decorator]
def chunk_kernel(  # type: ignore[no-untyped-def]
    q, keys, values, slots, lengths, scales, slopes, partial, best, total, count, room, window, scale, cap,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, KIND: tl.constexpr, LAST: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
):  # fmt: skip
    """Heads of one token that share keys, over one chunk of them: sum of w v, largest score, sum of w."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    BLOCKS: tl.constexpr = (GROUP + ROWS - 1) // ROWS
    token, chunk = tl.program_id(0).to(tl.int64), tl.program_id(2)
    slot, length = sequence(slots, lengths, token, count, room)
    seen = tl.minimum(length, window)
    size = chunk_size(seen)
    if chunk * size >= seen:
        return
    start = length - seen + chunk * size
    end = tl.minimum(start + size, length)
    kv_head = tl.program_id(1) // BLOCKS
    row = (tl.program_id(1) % BLOCKS) * ROWS + tl.arange(0, ROWS)
    channel, inside = tl.arange(0, COLUMNS), row < GROUP
    head = kv_head * GROUP + row
    there = inside[:, None] & (channel < SIZE)[None, :]
    queries = tl.load(q + (token * HEADS + head)[:, None] * SIZE + channel[None, :], mask=there, other=0.0)
    cached = (slot * KV_HEADS + kv_head) * room * SIZE
    value_scale = 1.0
    if KIND != PLAIN:
        scale, value_scale = scale * tl.load(scales), tl.load(scales + LAST)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    summed = tl.zeros((ROWS, COLUMNS), tl.float32)
    for block in range(start, end, BLOCK):
        place = block + tl.arange(0, BLOCK)
        visible = place < end
        where = cached + place[:, None] * SIZE + channel[None, :]
        mask = visible[:, None] & (channel < SIZE)[None, :]
        k = as_operand(tl.load(keys + where, mask=mask, other=0), queries.dtype, KIND)
        scores = tl.dot(queries, tl.trans(k), input_precision="ieee") * scale
        if CAPPED:
            scores = cap * (1.0 - 2.0 / (tl.exp(2.0 * scores / cap) + 1.0))
        if SLOPED:
            slope = tl.load(slopes + head, mask=inside, other=0.0)
            scores -= slope[:, None] * (length - 1 - place)[None, :]
        scores = tl.where(visible[None, :], scores, float("-inf"))
        now = tl.maximum(largest, tl.max(scores, 1))
        kept, w = tl.exp(largest - now), tl.exp(scores - now[:, None])
        v = as_operand(tl.load(values + where, mask=mask, other=0), queries.dtype, KIND)
        summed = weighted(w, v, summed * kept[:, None])
        weight, largest = weight * kept + tl.sum(w, 1), now
    at = (token * HEADS + head) * tl.num_programs(2) + chunk
    tl.store(partial + at[:, None] * SIZE + channel[None, :], summed * value_scale, mask=there)
    tl.store(best + at, largest, mask=inside)
    tl.store(total + at, weight, mask=inside)


@triton.jit
def weighted(w, v, summed):  # type: ignore[no-untyped-def]
    """summed + w v with float32 weights: those of half precision go in as two parts, which hold 16 bits or more."""
    if v.dtype == tl.float32:
        summed = tl.dot(w, v, summed, input_precision="ieee")
    else:
        high = w.to(v.dtype)
        low = (w - high.to(tl.float32)).to(v.dtype)
        summed = tl.dot(low, v, tl.dot(high, v, summed))
    return summed


@triton.jit(do_not_specialize=("count",))  # type: ignore[untyped-decorator]
def merge_kernel(  # type: ignore[no-untyped-def]
    partial, best, total, slots, lengths, out, count, room, window, chunks,
    HEADS: tl.constexpr, SIZE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """All chunks of one head of one token, in one order whatever their number."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    _, length = sequence(slots, lengths, token, count, room)
    seen = tl.minimum(length, window)
    chunk, channel = tl.arange(0, CHUNKS), tl.arange(0, COLUMNS)
    made = chunk * chunk_size(seen) < seen
    at = (token * HEADS + head) * chunks + chunk
    largest = tl.load(best + at, mask=made, other=float("-inf"))
    share = tl.where(made, tl.exp(largest - tl.max(largest, 0)), 0.0)
    weight = tl.sum(share * tl.load(total + at, mask=made, other=0.0), 0)
    mask = made[:, None] & (channel < SIZE)[None, :]
    sums = tl.load(partial + at[:, None] * SIZE + channel[None, :], mask=mask, other=0.0)
    attended = tl.where(seen > 0, tl.sum(sums * share[:, None], 0) / weight, 0.0)
    where = (token * HEADS + head) * SIZE + channel
    tl.store(out + where, attended.to(out.dtype.element_ty), mask=channel < SIZE)
