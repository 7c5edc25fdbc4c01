"""A gated MLP's product, act(gate) * up, quantized on its way to the linear that reads it.

TensorRT-LLM's network computes it operation by operation. The exponential here is ``arithmetic.exp``, which is the
same on every device, so that integers are too; a library's may differ from it in the last bit of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .arithmetic import exp
from .kernels import beside
from .lazy import torch
from .quantized_rows import Rows, quantized, smoothed

# gelu: x Phi(x) by its tanh approximation, x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3); here -2u / x.
GELU_LINEAR, GELU_CUBIC = float.fromhex("-0x1.988454p+0"), float.fromhex("-0x1.2444f2p-4")
# Exponents are kept within this, where e^t and its reciprocal are normal numbers of float32: 1 + e^86 is 2e37.
LARGEST_EXPONENT = 86.0


def weighed(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """x / (1 + e^t)."""
    return x / (exp(t.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)) + 1)


def silu(x: torch.Tensor) -> torch.Tensor:
    """x / (1 + e^-x)."""
    return weighed(x, -x)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x / (1 + e^-2u)."""
    return weighed(x, x * (x * x * GELU_CUBIC + GELU_LINEAR))


def relu(x: torch.Tensor, squared: bool = False) -> torch.Tensor:
    """max(x, 0), or its square."""
    y = torch.where(x > 0, x, torch.zeros_like(x))
    return y * y if squared else y


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "relu": relu,
    "squared-relu": partial(relu, squared=True),
}


def reference(
    gate: torch.Tensor,
    up: torch.Tensor | None = None,
    smoother: torch.Tensor | None = None,
    *,
    activation: str = "silu",
    kind: str | None = None,
    scale: torch.Tensor | None = None,
) -> Rows:
    """act(gate) * up / smoother, act in float32, each of the three rounded to gate's dtype, then quantized.

    Args:
        gate, up: [tokens, channels] in the engine's dtype, rows of any stride: they may be slices of one matrix;
            without up, the activation alone.
        smoother: [channels].
        activation: one of ``ACTIVATIONS``.
        kind: of what leaves: "int8", "fp8", or None for gate's dtype.
        scale: float32 [1]; INT8: 127 / range, FP8: range / 448; without it, per token.
    """
    y = ACTIVATIONS[activation](gate.float()).to(gate.dtype)
    return quantized(smoothed(y if up is None else y * up, smoother), kind, scale)


run = beside(reference, "gated_activation_triton")
