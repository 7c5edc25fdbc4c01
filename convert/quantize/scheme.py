"""What is quantized, and how finely, in words that belong to no file format and no runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...plugins.lazy import torch
from ..numbers.quantized import QuantizedLinear

# What a weight's values are.
FLOAT, INTEGERS, E4M3 = "float", "integers", "e4m3"
# What shares a scale.
MATRIX, CHANNEL, GROUP = "matrix", "channel", "group"
NEAREST, GPTQ = "nearest", "gptq"


@dataclass(frozen=True)
class Scheme:
    """What is quantized, and how finely.

    Attributes:
        name: what the user calls it; None for floating-point weights.
        weights: FLOAT, INTEGERS or E4M3.
        bits: of a weight.
        granularity: what shares a weight scale: the MATRIX, an output CHANNEL, or a GROUP of a row's input channels.
        group_size: input channels of such a group.
        zeros: scales have zero points with them.
        activations: None where a linear reads floating point, else "int8" or "fp8".
        static: activations have one scale that calibration finds; otherwise one a token, found at run time.
        prescaled: the runtime may scale a linear's input channel by channel.
        folded: it scales no input: a factor goes whole into the norm or the linear before, or there is none.
        kept: scales are kept in the model's dtype, and integers are chosen on what is left of them.
        rounding: how weights are rounded unless another way is asked for, NEAREST or GPTQ.
        experts: what experts of a mixture have under it, where it is another one.
        held_as: name of the scheme in whose format its linears are held, where it has none of its own.
    """

    name: str | None = None
    weights: str = FLOAT
    bits: int = 16
    granularity: str = MATRIX
    group_size: int | None = None
    zeros: bool = False
    activations: str | None = None
    static: bool = False
    prescaled: bool = False
    folded: bool = False
    kept: bool = False
    rounding: str = NEAREST
    experts: Scheme | None = None
    held_as: str | None = None

    @property
    def quantized(self) -> bool:
        return self.weights != FLOAT

    @property
    def smooths(self) -> bool:
        """Weights and activations are integers of 8 bits, between which what stands out can be moved: SmoothQuant."""
        return self.weights == INTEGERS and self.bits == 8 and self.activations == "int8"

    @property
    def grouped(self) -> bool:
        """Weights have a scale per group, products are not of integers, and what is read decides: AWQ and GPTQ."""
        chosen = self.prescaled or self.zeros
        return self.weights == INTEGERS and self.granularity == GROUP and self.activations != "int8" and chosen

    @property
    def weight_only(self) -> bool:
        """Integers alone: what a linear reads reaches the kernel in floating point."""
        return self.weights == INTEGERS and (self.activations is None or self.grouped)

    @property
    def takes_gptq(self) -> bool:
        """GPTQ can choose its integers."""
        return self.weights == INTEGERS and (self.smooths or self.activations != "int8")

    @property
    def gains_from_rotation(self) -> bool:
        """All output rows of a matrix share one scale, so rows that stand out cost the others their precision."""
        return self.smooths and self.granularity == MATRIX


# The scheme of each group of linears of one layer, by the group's name.
LayerSchemes = Mapping[str, Scheme]
# The weight that an engine multiplies with, float32 [out, in], as its kernels dequantize it.
Computed = Callable[[Scheme, QuantizedLinear], "torch.Tensor"]
