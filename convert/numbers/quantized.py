"""What every quantization makes of a linear, whatever file or runtime it is for."""

from __future__ import annotations

from dataclasses import dataclass

from ...plugins.lazy import torch


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
    """

    values: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None
    second: torch.Tensor | None = None
    smoother: torch.Tensor | None = None
    range: float | None = None
    output: float | None = None

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
