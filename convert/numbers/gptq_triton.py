"""gptq.one_by_one in one launch of a Triton kernel: rows of the weight do not see each other."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .rounding import Grid

# Output rows of one program: few enough that they stay in registers with all channels of a block.
ROWS = 16
# A float32 of this size has no bits behind the point: to add and subtract it rounds to the nearest, half to even.
NO_FRACTION: tl.constexpr = tl.constexpr(1.5 * 2**23)


def one_by_one(w: torch.Tensor, u: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, grid: Grid) -> torch.Tensor:
    """As gptq.one_by_one, on a GPU."""
    channels, out = w.shape
    errors = torch.empty_like(w)
    numbers = channels, out, u.stride(0), float(grid.low), float(grid.high)
    block = triton.next_power_of_2(channels)
    kernel[(triton.cdiv(out, ROWS),)](
        w, u, scale, offset, errors, *numbers, BLOCK=block, ROWS=ROWS, enable_fp_fusion=True
    )
    return errors


@triton.jit  # type: ignore[untyped-decorator]
def kernel(  # type: ignore[no-untyped-def]
    w, u, scale, offset, errors, channels, out, u_stride, low, high, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    rows, behind = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside, held = rows < out, behind < channels
    places, there = behind[:, None] * out + rows[None, :], held[:, None] & inside[None, :]
    tile = tl.load(w + places, mask=there, other=0.0)
    for j in range(channels):
        is_j = (behind == j)[:, None]
        now = tl.sum(tl.where(is_j, tile, 0.0), 0)
        s = tl.load(scale + j * out + rows, mask=inside, other=1.0)
        from_offset = now - tl.load(offset + j * out + rows, mask=inside, other=0.0)
        k = (tl.div_rn(from_offset, s) + NO_FRACTION) - NO_FRACTION
        k = tl.minimum(tl.maximum(k, low), high)
        error = from_offset - k * s
        move = tl.load(u + j * u_stride + behind, mask=held, other=0.0)
        tile = tl.where(is_j, k[None, :], tile - move[:, None] * error[None, :])
        tl.store(errors + j * out + rows, error, mask=inside)
    tl.store(w + places, tile, mask=there)
