"""The formats of ModelOpt's unified folders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ....plugins import fp8
from ....plugins.lazy import torch
from ...numbers.nibbles import pack_rows
from ...numbers.quantized import QuantizedLinear
from ...quantize.scheme import CHANNEL, E4M3, GROUP, INTEGERS, MATRIX, Scheme
from ..huggingface.format import Format, Spec, Tensors, named


class ModelOptFormat(Format):
    """One format of ModelOpt."""

    def entry(self) -> dict[str, Any]:
        """What the configuration says of linears that have it."""
        return {"quant_algo": self.scheme.name}


class Fp8(ModelOptFormat):
    """``weight`` e4m3, ``weight_scale`` and ``input_scale`` one number each."""

    schemes: ClassVar[Mapping[str, Scheme]] = named(
        Scheme("FP8", E4M3, 8, MATRIX, activations="fp8", static=True, kept=True)
    )

    def tensors(self, out_features: int, in_features: int, behind_norm: bool) -> dict[str, Spec]:
        scales: dict[str, Spec] = {"weight_scale": ([], "float32"), "input_scale": ([], "float32")}
        return {"weight": ([out_features, in_features], "float8_e4m3fn")} | scales

    def store(self, made: QuantizedLinear) -> Tensors:
        assert made.range is not None
        scale = self.kept(made.range / fp8.MAX)
        return {"weight": made.values, "weight_scale": self.number(made.scale), "input_scale": self.number(scale)}


class Fp8Rowwise(ModelOptFormat):
    """``weight`` e4m3 and ``weight_scale`` [out]."""

    schemes: ClassVar[Mapping[str, Scheme]] = named(
        Scheme("FP8_PER_CHANNEL_PER_TOKEN", E4M3, 8, CHANNEL, activations="fp8", kept=True),
        fp8_pc_pt="FP8_PER_CHANNEL_PER_TOKEN",
    )

    def tensors(self, out_features: int, in_features: int, behind_norm: bool) -> dict[str, Spec]:
        return {
            "weight": ([out_features, in_features], "float8_e4m3fn"),
            "weight_scale": ([out_features], "float32"),
        }

    def store(self, made: QuantizedLinear) -> Tensors:
        return {"weight": made.values, "weight_scale": made.scale}


class Awq(ModelOptFormat):
    """``weight`` uint8 [out / 2, in], two rows a byte; ``weight_scale`` [out, groups]; ``pre_quant_scale`` [in], what
    the input is multiplied by, where no norm makes it."""

    group_sizes = (64, 128)
    out_multiple = 2
    divides = True
    schemes: ClassVar[Mapping[str, Scheme]] = named(
        Scheme("W4A16_AWQ", INTEGERS, 4, GROUP, 128, prescaled=True, kept=True), int4_awq="W4A16_AWQ"
    )

    def entry(self) -> dict[str, Any]:
        groups = {"group_size": self.scheme.group_size, "has_zero_point": False, "pre_quant_scale": True}
        return super().entry() | groups

    def tensors(self, out_features: int, in_features: int, behind_norm: bool) -> dict[str, Spec]:
        assert self.scheme.group_size is not None
        factor: dict[str, Spec] = {} if behind_norm else {"pre_quant_scale": ([in_features], self.dtype)}
        return factor | {
            "weight": ([out_features // 2, in_features], "uint8"),
            "weight_scale": ([out_features, in_features // self.scheme.group_size], "float32"),
        }

    def store(self, made: QuantizedLinear) -> Tensors:
        factor = {} if made.smoother is None else {"pre_quant_scale": made.prescale()}
        return factor | {"weight": pack_rows(made.values).view(torch.uint8), "weight_scale": made.scale}
