"""The formats of compressed-tensors: its tensors, and what its configuration says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ....plugins import fp8
from ....plugins.lazy import torch
from ...numbers.quantized import QuantizedLinear
from ...quantize.scheme import CHANNEL, E4M3, GPTQ, GROUP, INTEGERS, MATRIX, Scheme
from ..huggingface.format import Format, Spec, Tensors, named
from .packing import packed

STATIC = {"strategy": "tensor", "symmetric": True, "dynamic": False}
PER_TOKEN = {"strategy": "token", "symmetric": True, "dynamic": True}


class CompressedFormat(Format):
    """One format of compressed-tensors.

    Class attributes:
        compression: its name there.
        kind: "int" or "float".
    """

    compression: ClassVar[str]
    kind: ClassVar[str] = "int"

    def weights(self) -> dict[str, Any]:
        """What the configuration says of weights."""
        strategy = {MATRIX: "tensor", CHANNEL: "channel", GROUP: "group"}[self.scheme.granularity]
        said = {"num_bits": self.scheme.bits, "type": self.kind, "strategy": strategy, "symmetric": True}
        return said | {"dynamic": False}

    def input_activations(self) -> dict[str, Any] | None:
        """What it says of activations."""
        if self.scheme.activations is None:
            return None
        return {"num_bits": 8, "type": self.kind} | (STATIC if self.scheme.static else PER_TOKEN)

    def scales(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales in the model's dtype, in which integers were chosen: a reader may load them in it."""
        return scale.to(getattr(torch, self.dtype))

    def input_scale(self, made: QuantizedLinear, largest: float) -> Tensors:
        if not self.scheme.static:
            return {}
        assert made.range is not None
        return {"input_scale": self.scales(torch.tensor([self.kept(made.range / largest)]))}


class Int8(CompressedFormat):
    """``weight`` int8, ``weight_scale`` [out, 1], and ``input_scale`` [1] where activations have one."""

    compression = "int-quantized"
    schemes: ClassVar[Mapping[str, Scheme]] = named(
        *(
            Scheme(name, INTEGERS, 8, CHANNEL, activations="int8", static=static, folded=True, kept=True)
            for name, static in (("W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", False), ("W8A8_SQ_PER_CHANNEL", True))
        ),
        W8A8="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
        INT8="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
        W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN="W8A8_SQ_PER_CHANNEL",
    )

    def tensors(self, out_features: int, in_features: int, behind_norm: bool) -> dict[str, Spec]:
        scale = {"input_scale": ([1], self.dtype)} if self.scheme.static else {}
        return {
            "weight": ([out_features, in_features], "int8"),
            "weight_scale": ([out_features, 1], self.dtype),
            **scale,
        }

    def store(self, made: QuantizedLinear) -> Tensors:
        scale = self.scales(made.scale).reshape(-1, 1).expand(len(made.values), 1)
        return {"weight": made.values, "weight_scale": scale} | self.input_scale(made, 127)


class Float8(CompressedFormat):
    """``weight`` e4m3; one ``weight_scale`` and one ``input_scale``, or a scale a channel."""

    compression, kind = "float-quantized", "float"
    schemes: ClassVar[Mapping[str, Scheme]] = named(
        Scheme("FP8", E4M3, 8, MATRIX, activations="fp8", static=True, kept=True),
        Scheme("FP8_PER_CHANNEL_PER_TOKEN", E4M3, 8, CHANNEL, activations="fp8", kept=True),
        FP8_DYNAMIC="FP8_PER_CHANNEL_PER_TOKEN",
    )

    def tensors(self, out_features: int, in_features: int, behind_norm: bool) -> dict[str, Spec]:
        scales = {"weight_scale": ([out_features, 1], self.dtype)}
        if self.scheme.granularity == MATRIX:
            scales = {"weight_scale": ([1], self.dtype), "input_scale": ([1], self.dtype)}
        return {"weight": ([out_features, in_features], "float8_e4m3fn"), **scales}

    def store(self, made: QuantizedLinear) -> Tensors:
        shape = [1] if self.scheme.granularity == MATRIX else [-1, 1]
        own = {"weight": made.values, "weight_scale": self.scales(made.scale).reshape(shape)}
        return own | self.input_scale(made, fp8.MAX)


class Packed(CompressedFormat):
    """``weight_packed`` and ``weight_zero_point`` int32, ``weight_scale`` [out, groups], ``weight_shape``."""

    compression = "pack-quantized"
    group_sizes = (32, 64, 128)
    schemes: ClassVar[Mapping[str, Scheme]] = named(
        Scheme("W4A16_AWQ", INTEGERS, 4, GROUP, 128, prescaled=True, folded=True, kept=True),
        *(
            Scheme(f"W{bits}A16_GPTQ", INTEGERS, bits, GROUP, 128, zeros=True, rounding=GPTQ, kept=True)
            for bits in (4, 8)
        ),
        *(Scheme(f"W{bits}A16", INTEGERS, bits, CHANNEL, kept=True) for bits in (8, 4)),
        W4A16_ASYM="W4A16_GPTQ",
    )

    @property
    def zero_points(self) -> bool:
        return self.scheme.zeros

    def weights(self) -> dict[str, Any]:
        groups = {} if self.scheme.group_size is None else {"group_size": self.scheme.group_size}
        return super().weights() | groups | {"symmetric": not self.zero_points}

    def tensors(self, out_features: int, in_features: int, behind_norm: bool) -> dict[str, Spec]:
        bits, groups = self.scheme.bits, in_features // (self.scheme.group_size or in_features)
        zeros = {"weight_zero_point": ([-(-out_features * bits // 32), groups], "int32")} if self.zero_points else {}
        return {
            "weight_packed": ([out_features, -(-in_features * bits // 32)], "int32"),
            "weight_scale": ([out_features, groups], self.dtype),
            "weight_shape": ([2], "int64"),
            **zeros,
        }

    def store(self, made: QuantizedLinear) -> Tensors:
        bits, scale = self.scheme.bits, made.scale.reshape(len(made.values), -1)
        own = {
            "weight_packed": packed(made.values, bits),
            "weight_scale": self.scales(scale),
            "weight_shape": torch.tensor(list(made.values.shape)),
        }
        if self.zero_points:
            zero = torch.zeros_like(scale, dtype=torch.int8) if made.zero is None else made.zero
            own["weight_zero_point"] = packed(zero.t(), bits).t()
        return own
