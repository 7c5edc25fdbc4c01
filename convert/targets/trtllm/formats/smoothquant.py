"""SmoothQuant, executed by TensorRT-LLM's plugins: INT8 weights and activations.

The plugin multiplies by act_scale * per_channel_scale = (X / 127) (w / 127). Where X is static the first of them holds
the output's range Y instead, and the second X / Y: Y cancels.
"""

from __future__ import annotations

from functools import partial

from .....plugins import (
    layernorm_quantization,
    quantize_per_token,
    quantize_tensor,
    rmsnorm_quantization,
    smooth_quant_gemm,
)
from .....plugins.identity import Generations, Plugin
from .....plugins.lazy import torch
from .....plugins.quantized_rows import INT8 as INT8_ROWS
from .....plugins.smooth_quant_gemm import MOST_FEW_TOKENS
from ....models.pieces import HEADS, Group, Linear
from ....numbers.quantized import QuantizedLinear
from ....quantize.scheme import CHANNEL, INTEGERS, MATRIX, Scheme
from ..ranks import FLOAT32, INT8, Tensor
from ..values import POSITIVE
from .base import Activation, Format, Product, Rounding, Tensors, module_of


def scheme(name: str, granularity: str, static: bool) -> Scheme:
    return Scheme(name, INTEGERS, 8, granularity, activations="int8", static=static, prescaled=True)


class SmoothQuant(Format):
    """``weight`` int8, ``per_channel_scale``, static ``act_scale``, and ``smoother`` where no norm makes the input.

    What quantizes the input lies before the linear: ``scale_to_int`` of the norm, ``quantization_scaling_factor`` of
    the attention or MLP. A qkv has a scale per column whatever the scheme.
    """

    schemes = (
        scheme("W8A8_SQ_PER_TENSOR_PLUGIN", MATRIX, static=True),
        scheme("W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN", CHANNEL, static=True),
        scheme("W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN", MATRIX, static=False),
        scheme("W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", CHANNEL, static=False),
    )
    whole_block = True
    excludes = False

    @classmethod
    def gpus(cls, scheme: Scheme) -> Generations:
        return smooth_quant_gemm.PLUGIN.gpus

    @classmethod
    def plugins(cls, scheme: Scheme) -> tuple[Plugin, ...]:
        quantize = quantize_tensor.PLUGIN if scheme.static else quantize_per_token.PLUGIN
        return (smooth_quant_gemm.PLUGIN, rmsnorm_quantization.PLUGIN, layernorm_quantization.PLUGIN, quantize)

    @classmethod
    def enables(cls, scheme: Scheme) -> tuple[Plugin, ...]:
        return (*cls.plugins(scheme), quantize_tensor.PLUGIN, quantize_per_token.PLUGIN)

    def tensors(self, linear: Linear, group: Group) -> dict[str, Tensor]:
        by_channel = self.scheme.granularity == CHANNEL or linear.cut == HEADS
        tensors = {
            "weight": Tensor(("out", "in"), INT8, None),
            "per_channel_scale": Tensor((1, "out" if by_channel else 1), FLOAT32, POSITIVE),
        }
        if self.scheme.static:
            tensors["act_scale"] = Tensor((1, 1), FLOAT32, POSITIVE)
        if group.norm is None:
            tensors["smoother"] = Tensor((1, "in"), FLOAT32, POSITIVE)
        return tensors

    def input_scale(self, group: Group) -> str | None:
        if group.norm is not None:
            return f"{group.norm}.scale_to_int"
        return f"{module_of(group)}.quantization_scaling_factor" if self.scheme.static else None

    def stored_input_scale(self, made: QuantizedLinear) -> torch.Tensor:
        """127 / X, from activation to int8; 1 where it is found per token."""
        return torch.tensor([1.0 if made.range is None else 127 / made.range])

    def store(self, made: QuantizedLinear) -> Tensors:
        tensors, scale = {"weight": made.values}, made.scale
        if made.range is not None:
            assert made.output is not None
            scale = scale * (made.range / made.output)
            tensors["act_scale"] = torch.tensor([[made.output / 127]])
        tensors["per_channel_scale"] = scale[None]
        if made.smoother is not None:
            tensors["smoother"] = made.smoother[None]
        return tensors

    def read(self, own: Tensors, input_scale: torch.Tensor | None = None) -> QuantizedLinear:
        scale, smoother = own["per_channel_scale"][0], own["smoother"][0] if "smoother" in own else None
        if "act_scale" not in own:
            return QuantizedLinear(own["weight"], scale, smoother=smoother)
        assert input_scale is not None
        largest, output = 127 / float(input_scale), 127 * float(own["act_scale"])
        return QuantizedLinear(
            own["weight"], scale * (output / largest), smoother=smoother, range=largest, output=output
        )

    def divisor(self, own: Tensors) -> torch.Tensor | None:
        return own.get("smoother")

    def rounding(self, input_scale: torch.Tensor | None) -> Rounding:
        return Rounding(INT8_ROWS, input_scale if self.scheme.static else None)

    def prepared(self, own: Tensors) -> Product:
        return partial(self.product, own, most_few=0)

    def product(self, own: Tensors, read: Activation, most_few: int = MOST_FEW_TOKENS) -> torch.Tensor:
        scale = own["act_scale"] if read.scale is None else read.scale
        return smooth_quant_gemm.run(
            read.x, own["weight"], scale, own["per_channel_scale"], self.engine.torch_dtype, most_few=most_few
        )


def algorithm(per_token: bool, per_channel: bool) -> str:
    """The QuantAlgo that upstream's --per_token and --per_channel flags mean."""
    wanted = CHANNEL if per_channel else MATRIX
    names = (s.name for s in SmoothQuant.schemes if (s.static, s.granularity) == (not per_token, wanted))
    return str(next(names))
