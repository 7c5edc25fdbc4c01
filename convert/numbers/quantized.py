"""What every quantization makes of a linear, whatever file or runtime it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...plugins.lazy import torch
from ..errors import InputError


@dataclass(frozen=True)
class QuantizedLinear:
    """A linear, or those that a family fuses into one, quantized; and what is done to its input x.

        W = (values - zero) * scale, and times second        y = W @ Q(x / smoother)

    Attributes:
        values: int8 or e4m3 [out, in]; float32 where the linear is not quantized.
        scale: [1], [out] or [out, groups], where group g scales in / groups neighbouring input channels: float32,
            float16 for QoQ, int8 where a second scale follows; 1 where the linear is not quantized.
        zero: int8, of scale's shape; None where every zero is 0.
        second: a scale of the scales of each row, float16 [out]; None where there is one level of them.
        smoother: what the runtime divides the input by, float32 [in]; None where nothing is left to be divided.
        range: the largest |x / smoother| that Q represents; None where it rounds token by token, or not at all.
        output: the largest |y| that calibration saw, beside an int8 range.
        input_zero: what Q adds to the integers of its input, beside a range.
    """

    values: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None
    second: torch.Tensor | None = None
    smoother: torch.Tensor | None = None
    range: float | None = None
    output: float | None = None
    input_zero: int = 0

    def dequantize(self) -> torch.Tensor:
        """W, float32 [out, in]."""
        scale = self.scale.float().reshape(len(self.scale), -1)
        weight = self.values.float().unflatten(1, (scale.shape[1], -1))
        if self.zero is not None:
            weight = weight - self.zero.float().view_as(scale)[..., None]
        weight = weight * scale[..., None]
        flat: torch.Tensor = weight.flatten(1)
        return flat if self.second is None else flat * self.second.float()[:, None]

    def prescale(self) -> torch.Tensor:
        """What the input is multiplied by instead of a division, float32 [in]."""
        if self.smoother is None:
            return torch.ones(self.values.shape[1], device=self.values.device)
        return 1 / self.smoother

    def to(self, device: torch.device) -> QuantizedLinear:
        """The same on a device."""
        zero, second, smoother = (t if t is None else t.to(device) for t in (self.zero, self.second, self.smoother))
        values, scale = self.values.to(device), self.scale.to(device)
        return replace(self, values=values, scale=scale, zero=zero, second=second, smoother=smoother)

    def rows(self, sizes: Sequence[int]) -> list[QuantizedLinear]:
        """The linears whose rows these are, so many of each."""

        def pieces(tensor: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
            whole = tensor is None or len(tensor) != len(self.values)
            return [tensor] * len(sizes) if whole or tensor is None else tensor.split(list(sizes))

        parts = zip(*map(pieces, (self.values, self.scale, self.zero, self.second)), strict=True)
        return [replace(self, values=v, scale=s, zero=z, second=t) for v, s, z, t in parts]


def stacked(parts: Sequence[QuantizedLinear], names: Sequence[str]) -> QuantizedLinear:
    """The rows of linears that read one input, one below the other.

    Args:
        names: of each, for messages.

    Raises:
        InputError: what they must share differs: a smoother, a range, or the one scale of a matrix.
    """
    first, zero = parts[0], None
    if len(parts) == 1:
        return first
    for part, name in zip(parts, names, strict=True):
        if not same(part.smoother, first.smoother) or part.range != first.range:
            raise InputError(f"{names[0]} and {name} read one input, but scale it differently; they cannot be fused")
        if part.scale.numel() == 1 and not torch.equal(part.scale, first.scale):
            raise InputError(
                f"{names[0]} and {name} have scales of their own ({float(first.scale):.4g}, {float(part.scale):.4g}), "
                "and fused they have one"
            )
    if any(part.zero is not None for part in parts):
        zero = torch.cat([torch.zeros_like(p.scale, dtype=torch.int8) if p.zero is None else p.zero for p in parts])
    scale = first.scale if first.scale.numel() == 1 else torch.cat([part.scale for part in parts])
    return replace(first, values=concatenated([part.values for part in parts]), scale=scale, zero=zero)


def concatenated(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Matrices one below the other; PyTorch moves the bytes of e4m3, but not its values."""
    if values[0].dtype != torch.float8_e4m3fn:
        return torch.cat(list(values))
    return torch.cat([one.view(torch.int8) for one in values]).view(torch.float8_e4m3fn)


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return other is None if one is None else other is not None and torch.equal(one, other)
