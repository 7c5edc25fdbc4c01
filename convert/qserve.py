"""QoQ: 4-bit weights, 8-bit activations and nothing but integers in the inner product (W4A8_QSERVE_*).

Per group, weights are rounded twice (progressive quantization). First to INT8 within [-119, 119], per output
channel; then that integer to 4 bits, per group of 128 input channels, with an integer scale:

    W ~ k8 s1,           s1 = max|W| / 119
    k8 ~ (k4 - z) s2,    s2 = (max k8 - min k8) / 15, z = round(-min k8 / s2), 0 <= k4, z <= 15

s2 is whole and at most ceil(238 / 15) = 16, so k4 s2 fits an unsigned byte, and |(k4 - z) s2| <= 119 + s2 / 2 <= 127 a
signed one: the kernel unfolds four weights with one 32-bit multiplication. Per channel there is one step only:

    W ~ (k4 - z) s1,     s1 = (max W - min W) / 15

Lin et al. 2024, "QServe: W4A8KV4 Quantization and System Co-design for Efficient LLM Serving", equations 5 to 7.

Storage. Of every 32 outputs x 32 inputs, as tensor-core fragments take them, a byte holds output r in its low nibble
and r + 16 in its high one. Scales and zeros lie by group, those of 32 outputs as 0 8 16 24 1 9 17 25 ...
"""

from __future__ import annotations

from dataclasses import dataclass

from ..plugins.lazy import torch
from .packing import check_multiple, pack_nibbles, unpack_nibbles
from .rounding import row_amax, stored

GROUP = 128
PROTECTED = 119
LEVELS = 15
# The kernel for larger batches computes 128 outputs at a time and leaves out what remains.
MULTIPLE = 128
# Axes of a weight cut into [out / 32, half, 8 rows, row, in / 32, half, 4 columns, column], in their stored order.
_FRAGMENT = (0, 4, 3, 6, 5, 2, 7, 1)


@dataclass(frozen=True)
class PerGroup:
    """A weight quantized progressively.

    Attributes:
        integers: k4 in [0, 15], int8 [out, in].
        s1: float16 [out].
        s2: int8 [out, in / 128], in [1, 16].
        zero: z in [0, 15], int8 [out, in / 128].
    """

    integers: torch.Tensor
    s1: torch.Tensor
    s2: torch.Tensor
    zero: torch.Tensor

    def unfold(self) -> torch.Tensor:
        """k8 = (k4 - z) s2, int8 [out, in]."""
        k4 = self.integers.unflatten(1, (self.s2.shape[1], -1))
        k8: torch.Tensor = (k4 - self.zero[..., None]) * self.s2[..., None]
        return k8.flatten(1)

    def dequantize(self) -> torch.Tensor:
        """float32 [out, in]."""
        return self.unfold().float() * self.s1.float()[:, None]


@dataclass(frozen=True)
class PerChannel:
    """A weight quantized to 4 bits per output channel.

    Attributes:
        integers: k4 in [0, 15], int8 [out, in].
        s1: float16 [out].
        zero: z in [0, 15], int8 [out].
    """

    integers: torch.Tensor
    s1: torch.Tensor
    zero: torch.Tensor

    @property
    def scaled_zero(self) -> torch.Tensor:
        """z s1 as it is stored, float16 [out]."""
        return (self.zero.float() * self.s1.float()).half()

    def dequantize(self) -> torch.Tensor:
        """What the kernel multiplies with: k4 s1 less the stored z s1, float32 [out, in]."""
        return self.integers.float() * self.s1.float()[:, None] - self.scaled_zero.float()[:, None]


def per_group(weight: torch.Tensor) -> PerGroup:
    """Quantize progressively; each group takes the whole s2, above or below the quotient, that errs less.

    Args:
        weight: float32 [out, in], in a multiple of 128.
    """
    s1 = stored(row_amax(weight) / PROTECTED, torch.float16)
    k8 = (weight / s1.float()[:, None]).round_().clamp_(-PROTECTED, PROTECTED).unflatten(1, (-1, GROUP))
    least, largest = k8.amin(2).clamp_max(0), k8.amax(2).clamp_min(0)
    quotient = (largest - least) / LEVELS
    below, above = (_second(k8, least, s2.clamp_min(1)) for s2 in (quotient.floor(), quotient.ceil()))
    take = below[3] < above[3]
    k4 = torch.where(take[..., None], below[0], above[0]).flatten(1).to(torch.int8)
    s2, zero = (torch.where(take, low, high).to(torch.int8) for low, high in zip(below[1:3], above[1:3], strict=True))
    return PerGroup(k4, s1, s2, zero)


def _second(k8: torch.Tensor, least: torch.Tensor, s2: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """k4, s2, z and the squared error of rounding k8 [out, groups, 128] with scales s2 [out, groups]."""
    zero = (-least / s2).round_().clamp_(0, LEVELS)
    k4 = (k8 / s2[..., None]).round_().add_(zero[..., None]).clamp_(0, LEVELS)
    error = ((k4 - zero[..., None]) * s2[..., None] - k8).square_().sum(2)
    return k4, s2, zero, error


def per_channel(weight: torch.Tensor) -> PerChannel:
    """Quantize a float32 [out, in] weight per output channel; 0 is among the values."""
    least, largest = weight.amin(1).clamp_max(0), weight.amax(1).clamp_min(0)
    s1 = stored((largest - least) / LEVELS, torch.float16)
    zero = (-least / s1.float()).round_().clamp_(0, LEVELS)
    k4 = (weight / s1.float()[:, None]).round_().add_(zero[:, None]).clamp_(0, LEVELS)
    return PerChannel(k4.to(torch.int8), s1, zero.to(torch.int8))


def check(out_features: int, in_features: int, name: str = "weight") -> None:
    """Raise InputError, naming sizes that work, unless the kernels take a weight of this shape."""
    check_multiple(f"{name}: in_features", in_features, GROUP, "QServe")
    check_multiple(f"{name}: out_features", out_features, MULTIPLE, "QServe")


def stored_per_group(weight: PerGroup) -> dict[str, torch.Tensor]:
    """TensorRT-LLM's tensors: ``weight`` int8 [out, in / 2], ``s1_scales`` float16 [out], ``s2_scales`` and
    ``s2_zeros`` int8 [in / 128, out], the zeros as -z s2 modulo 256."""
    return {
        "weight": pack(weight.integers),
        "s1_scales": weight.s1,
        "s2_scales": by_group(weight.s2),
        "s2_zeros": by_group(-weight.zero * weight.s2),
    }


def read_per_group(tensors: dict[str, torch.Tensor]) -> PerGroup:
    """The inverse of ``stored_per_group``."""
    s2, scaled_zero = by_channel(tensors["s2_scales"]), by_channel(tensors["s2_zeros"])
    # z s2 <= 240 fits a byte, so it is what the negated byte says.
    zero = (-scaled_zero).view(torch.uint8) // s2.view(torch.uint8)
    return PerGroup(unpack(tensors["weight"]), tensors["s1_scales"], s2, zero.to(torch.int8))


def stored_per_channel(weight: PerChannel) -> dict[str, torch.Tensor]:
    """TensorRT-LLM's tensors: ``weight`` int8 [out, in / 2], ``s1_scales`` and ``s1_szeros`` = z s1 float16 [out]."""
    return {
        "weight": pack(weight.integers),
        "s1_scales": weight.s1,
        "s1_szeros": weight.scaled_zero,
    }


def read_per_channel(tensors: dict[str, torch.Tensor]) -> PerChannel:
    """The inverse of ``stored_per_channel``."""
    zero = (tensors["s1_szeros"].float() / tensors["s1_scales"].float()).round_().to(torch.int8)
    return PerChannel(unpack(tensors["weight"]), tensors["s1_scales"], zero)


def pack(integers: torch.Tensor) -> torch.Tensor:
    """4-bit values as fragments: int8 [out, in] in [0, 15] -> int8 [out, in / 2]; both multiples of 32."""
    out, in_ = integers.shape
    cut = integers.view(out // 32, 2, 2, 8, in_ // 32, 2, 4, 4).permute(_FRAGMENT)
    return pack_nibbles(cut.reshape(out, in_))


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of ``pack``."""
    out, in_ = packed.shape[0], packed.shape[1] * 2
    cut = (unpack_nibbles(packed) & 15).view(out // 32, in_ // 32, 8, 4, 2, 2, 4, 2)
    return cut.permute([_FRAGMENT.index(axis) for axis in range(8)]).reshape(out, in_)


def by_group(values: torch.Tensor) -> torch.Tensor:
    """[out, groups] -> [groups, out], those of 32 outputs as a 4 x 8 table read down its columns."""
    table: torch.Tensor = values.t().unflatten(1, (-1, 4, 8))
    return table.transpose(2, 3).flatten(1).contiguous()


def by_channel(stored: torch.Tensor) -> torch.Tensor:
    """The inverse of ``by_group``."""
    table: torch.Tensor = stored.unflatten(1, (-1, 8, 4))
    return table.transpose(2, 3).flatten(1).t().contiguous()
