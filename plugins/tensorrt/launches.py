"""How each plugin's kernel is launched: what it is passed, which sizes are constants, its grid as a function of tokens.

Nothing here knows TensorRT. Whoever launches passes the inputs, then the number of tokens where it is asked for, then
the outputs, and so many programs as the grid says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import triton

from ..quantized_rows_triton import AT_ONCE, row_schedule
from ..smooth_quant_gemm import MOST_FEW_TOKENS
from . import entries
from .ahead import Kernel, compiled

# Floats as Triton writes pointers to them.
POINTERS = {"float16": "*fp16", "bfloat16": "*bf16"}
# Tactics of the product. The first computes few tokens without tensor cores: outputs and inputs of a step, warps.
OF_FEW = 1
STEP = (4, 1024, 4)
# The others compute any number of them: tokens, outputs and inputs of a tile, warps, tiles in flight.
TILES = {2: (16, 32, 256, 4, 4), 3: (64, 64, 128, 4, 3), 4: (64, 128, 64, 4, 4), 5: (128, 128, 64, 8, 3)}


class Launch(NamedTuple):
    """Attributes:

    entry: of ``entries``.
    types: what it is passed, in order, as Triton writes types.
    constants: values of its ``tl.constexpr`` parameters.
    grid: of the number of tokens and a division that rounds up: programs along x and y; both may be symbolic.
    warps: of a program.
    stages: tiles in flight.
    """

    entry: Any
    types: Mapping[str, str]
    constants: Mapping[str, object]
    grid: Callable[[Any, Callable[[Any, int], Any]], tuple[Any, Any]]
    warps: int
    stages: int = 3

    @property
    def takes_tokens(self) -> bool:
        """Whether the number of tokens stands between inputs and outputs, as an int32."""
        return "tokens" in self.types

    def kernel(self, sm: int) -> Kernel:
        """Compile it for a GPU generation."""
        return compiled(self.entry, sm, self.types, self.constants, warps=self.warps, stages=self.stages)


def tactics(most_tokens: int) -> list[int]:
    """Tactics of a product that is asked for at most so many tokens."""
    return [OF_FEW, 2] if most_tokens <= MOST_FEW_TOKENS else list(TILES)


def smooth_quant_gemm(
    out: int, channels: int, dtype: str, *, per_token: bool, per_channel: bool, tactic: int
) -> Launch:
    """x, weight, scale_a, scale_b -> y, as ``smooth_quant_gemm.reference``.

    Args:
        out, channels: sizes of the weight.
        dtype: "float16" or "bfloat16", of y.
        per_token: scale_a is [tokens, 1], not [1, 1].
        per_channel: scale_b is [1, out], not [1, 1].
        tactic: one of ``tactics``.
    """
    inputs = {"x": "*i8", "weight": "*i8", "scale_a": "*fp32", "scale_b": "*fp32"}
    outputs = {"y": POINTERS[dtype]}
    sizes = {"OUT": out, "CHANNELS": channels, "PER_TOKEN": per_token, "PER_CHANNEL": per_channel}
    if tactic == OF_FEW:
        columns, depth, warps = STEP
        constants = {**sizes, "BN": columns, "BK": depth}
        across = triton.cdiv(out, columns)
        entry = entries.smooth_quant_gemm_of_few
        return Launch(entry, {**inputs, **outputs}, constants, lambda tokens, cdiv: (across, tokens), warps)
    rows, columns, depth, warps, stages = TILES[tactic]
    constants = {**sizes, "MOST_FEW": MOST_FEW_TOKENS, "EVEN": channels % depth == 0}
    constants |= {"BM": rows, "BN": columns, "BK": depth}
    across = triton.cdiv(out, columns)
    types = {**inputs, "tokens": "i32", **outputs}
    return Launch(
        entries.smooth_quant_gemm,
        types,
        constants,
        lambda tokens, cdiv: (cdiv(tokens, rows) * across, 1),
        warps,
        stages,
    )


def rmsnorm_quantization(channels: int, dtype: str, eps: float) -> Launch:
    """x, weight -> q, scales, as ``rmsnorm_quantization.reference``."""
    floats = dict.fromkeys(("x", "weight"), POINTERS[dtype])
    return by_row(entries.rmsnorm_quantization, floats, channels, EPS=eps)


def add_rmsnorm_quantization(channels: int, dtype: str, eps: float) -> Launch:
    """x, residual, weight -> hidden, q, scales, as ``rmsnorm_quantization.reference``."""
    floats = dict.fromkeys(("x", "residual", "weight", "hidden"), POINTERS[dtype])
    return by_row(entries.add_rmsnorm_quantization, floats, channels, EPS=eps)


def quantize_per_token(channels: int, dtype: str) -> Launch:
    """x -> q, scales, as ``quantize_per_token.reference``."""
    return by_row(entries.quantize_per_token, {"x": POINTERS[dtype]}, channels)


def by_row(entry: Any, floats: dict[str, str], channels: int, **constants: object) -> Launch:
    """One program a token, which leaves as int8 with its scale."""
    schedule = row_schedule(channels, False, AT_ONCE)
    constants |= {"CHANNELS": channels, "PIECE": schedule["PIECE"], "PIECES": schedule["PIECES"]}
    types = {**floats, "q": "*i8", "scales": "*fp32"}
    return Launch(entry, types, constants, lambda tokens, cdiv: (tokens, 1), schedule["num_warps"])
