"""QuantizePerToken: INT8 or FP8 activations with one scale a token, found at run time."""

from __future__ import annotations

from .arithmetic import sum_in_any_order
from .identity import Plugin
from .kernels import beside
from .lazy import torch
from .quantized_rows import INT8, per_token, smoothed

PLUGIN = Plugin(
    "QuantizePerToken",
    ("type_id", "quant_mode", "clamp_enabled", "sum_per_token"),
    "quantize_per_token_plugin",
    "input",
    typed=False,
)


def reference(
    x: torch.Tensor, smoother: torch.Tensor | None = None, *, kind: str = INT8
) -> tuple[torch.Tensor, torch.Tensor]:
    """q = round(x * (127 / max|x|)) and scale = max|x| / 127, row by row; FP8 as ``fp8.quantize_per_token``.

    Args:
        x: [tokens, channels] in the engine's dtype, which rounds the 1e-6 that stands for smaller maxima.
        smoother: [channels]; x is divided by it first, in its own dtype.
        kind: "int8" or "fp8".

    Returns:
        int8 or e4m3 [tokens, channels] and float32 [tokens, 1].
    """
    return per_token(smoothed(x, smoother), kind)


def reference_with_sums(
    x: torch.Tensor, smoother: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """QServe's variant: INT8, with the sum of every row before it was quantized, float16 [tokens, 1].

    The order of the kernel's sum is not known; ``sum_in_any_order`` is nearer to the exact one than float32 is, and
    rounded to float32, then to float16.
    """
    y = smoothed(x, smoother)
    return (*per_token(y, INT8), sum_in_any_order(y.float()).float().half())


run = beside(reference, "quantize_per_token_triton")
run_with_sums = beside(reference_with_sums, "quantize_per_token_triton", "run_with_sums")
