"""What a tensor of a checkpoint may hold: finite numbers, positive scales, integers of a range, zeros of a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ....plugins.lazy import torch

NOT_FINITE = "holds NaN or Inf"


@dataclass(frozen=True)
class Values:
    """Numbers of an open interval; (-inf, inf) is every finite one.

    Attributes:
        fault: what is wrong with finite numbers that lie elsewhere.
    """

    above: float = -math.inf
    below: float = math.inf
    fault: str = ""

    def problem(self, tensor: torch.Tensor) -> str | None:
        """What is wrong with a tensor's values; None where nothing is."""
        tensor = tensor.float() if tensor.dtype == torch.float8_e4m3fn else tensor
        least, largest = (float(bound) for bound in torch.aminmax(tensor))  # NaN where there is one
        if not (-math.inf < least and largest < math.inf):
            return NOT_FINITE
        return None if self.above < least and largest < self.below else self.fault


@dataclass(frozen=True)
class Zeros:
    """Whole numbers times the scale of the same place.

    Attributes:
        scale: the last name of the tensor of scales.
        least, largest: the whole numbers.
    """

    scale: str
    least: int
    largest: int

    def problem(self, tensor: torch.Tensor, scale: torch.Tensor) -> str | None:
        """What is wrong with a tensor of zeros; None where nothing is.

        The product was rounded to its dtype, and the scale perhaps too, so twice the error of a rounding is allowed:
        8-bit zeros in bfloat16 are only known to within 2.

        Args:
            scale: positive, of the tensor's shape.
        """
        if tensor.dtype == torch.int8:  # a negated byte: it stands for 0 to 255
            zero, allowed = (-tensor).view(torch.uint8).float() / scale.float(), 0.0
        else:
            zero, allowed = tensor.float() / scale.float(), 2 * torch.finfo(tensor.dtype).eps
        if not torch.isfinite(zero).all():
            return NOT_FINITE
        whole, error = zero.round(), allowed * zero.abs().clamp_min(1)
        if ((zero - whole).abs() > error).any():
            return f"is not made of whole multiples of {self.scale}"
        if (whole < self.least - error).any() or (whole > self.largest + error).any():
            return f"holds multiples of {self.scale} outside of {self.least} to {self.largest}"
        return None


FINITE = Values()
POSITIVE = Values(0.0, math.inf, "is not positive; scales are")
# 0 where a channel of weights is: -math.ulp(0.0) is the largest negative number.
NOT_NEGATIVE = Values(-math.ulp(0.0), math.inf, "is negative; scales are not")
SECOND_SCALE = Values(0, 17, "holds second scales outside of 1 to 16")
