"""The formats that TensorRT Edge-LLM reads besides ModelOpt's: SmoothQuant in ModelOpt's dialect, and GPTQ's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ....plugins.lazy import torch
from ...errors import InputError
from ...numbers.quantized import QuantizedLinear
from ...quantize.scheme import CHANNEL, GPTQ, GROUP, INTEGERS, Scheme
from ...sources.readymade.kinds import ANEW
from ..compressed_tensors.packing import packed
from ..huggingface.format import Format, Spec, Tensors, named
from ..modelopt.formats import Awq, ModelOptFormat


class SmoothQuant(ModelOptFormat):
    """``weight`` int8, ``weight_scale`` [out], ``input_scale`` and ``pre_quant_scale`` [in]."""

    schemes: ClassVar[Mapping[str, Scheme]] = named(
        Scheme("W8A8_SQ_PER_CHANNEL", INTEGERS, 8, CHANNEL, activations="int8", static=True),
        int8_sq="W8A8_SQ_PER_CHANNEL",
    )
    divides, behind_norms = True, True

    def tensors(self, out_features: int, in_features: int, behind_norm: bool) -> dict[str, Spec]:
        return {
            "weight": ([out_features, in_features], "int8"),
            "weight_scale": ([out_features], "float32"),
            "input_scale": ([], "float32"),
            "pre_quant_scale": ([in_features], self.dtype),
        }

    def store(self, made: QuantizedLinear) -> Tensors:
        assert made.range is not None
        return {
            "weight": made.values,
            "weight_scale": made.scale,
            "input_scale": self.number(made.range / 127),
            "pre_quant_scale": made.prescale(),
        }


class EdgeAwq(Awq):
    """ModelOpt's AWQ, in sizes that the plugin takes."""

    out_multiple, in_multiple = 4, 64


class EdgeGptq(Format):
    """GPTQ's tensors, ``qweight`` [in / 8, out], ``scales`` [groups, out], symmetric: every zero is the middle."""

    group_sizes = (64, 128)
    out_multiple, in_multiple = 8, 64
    schemes: ClassVar[Mapping[str, Scheme]] = named(
        Scheme("W4A16_GPTQ", INTEGERS, 4, GROUP, 128, zeros=True, rounding=GPTQ, kept=True)
    )
    # The first version of the format stores a zero less one: 8 nibbles of 7.
    MIDDLE = 0x77777777

    def tensors(self, out_features: int, in_features: int, behind_norm: bool) -> dict[str, Spec]:
        assert self.scheme.group_size is not None
        groups = in_features // self.scheme.group_size
        return {
            "qweight": ([in_features // 8, out_features], "int32"),
            "qzeros": ([groups, out_features // 8], "int32"),
            "scales": ([groups, out_features], self.dtype),
            "g_idx": ([in_features], "int32"),
        }

    def store(self, made: QuantizedLinear) -> Tensors:
        assert self.scheme.group_size is not None
        if made.zero is not None:
            raise InputError(f"zero points, which Edge-LLM clamps: this folder keeps its own; {ANEW} --symmetric")
        out_features, in_features = made.values.shape
        groups = made.scale.shape[1]
        return {
            "qweight": packed(made.values, 4).t(),
            "qzeros": torch.full((groups, out_features // 8), self.MIDDLE, dtype=torch.int32),
            "scales": made.scale.t().to(getattr(torch, self.dtype)),
            "g_idx": torch.arange(in_features, dtype=torch.int32) // self.scheme.group_size,
        }
