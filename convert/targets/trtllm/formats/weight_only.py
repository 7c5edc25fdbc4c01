"""W8A16 and W4A16: integers with a scale per output channel, in the order of a mixed GEMM; activations stay float."""

from __future__ import annotations

from .....plugins import weight_only_quant_matmul
from .....plugins.identity import Generations, Plugin
from .....plugins.lazy import torch
from .....plugins.packing import Layout, layout_of
from ....models.pieces import Group, Linear
from ....numbers.quantized import QuantizedLinear
from ....numbers.rounding import stored
from ....quantize.scheme import CHANNEL, GPTQ, INTEGERS, Scheme
from .. import packing
from ..ranks import INT8, MODEL_DTYPE, Tensor
from ..releases import FIRST, LAST
from ..storage import mixed_gemm
from ..values import NOT_NEGATIVE
from .base import Activation, Format, Product, Tensors

# Whatever the GPU, experts' integers have the order of this generation.
EXPERTS_SM = 80


def by_channel(name: str, bits: int) -> Scheme:
    """What TensorRT-LLM made of a mixture's experts under GPTQ: they have a scale per channel."""
    return Scheme(name, INTEGERS, bits, CHANNEL, rounding=GPTQ, held_as=f"W{bits}A16")


class WeightOnly(Format):
    """``weight``, ``per_channel_scale`` in the model's dtype: of a channel of zeros the least one."""

    schemes = (Scheme("W8A16", INTEGERS, 8, CHANNEL), Scheme("W4A16", INTEGERS, 4, CHANNEL))
    arranged = True
    weight_only = True
    ending = "*"  # the loader compares exclude_modules with names of tensors too

    @classmethod
    def experts(cls, scheme: Scheme) -> tuple[str, str] | None:
        return FIRST, LAST

    @classmethod
    def gpus(cls, scheme: Scheme) -> Generations:
        return weight_only_quant_matmul.PLUGIN.gpus

    @classmethod
    def plugins(cls, scheme: Scheme) -> tuple[Plugin, ...]:
        return (weight_only_quant_matmul.PLUGIN,)

    @property
    def layout(self) -> Layout:
        return layout_of(self.scheme.bits)

    def check(self, out_features: int, in_features: int, name: str) -> None:
        packing.check(self.layout, self.engine.sm, (out_features, in_features), name)

    def tensors(self, linear: Linear, group: Group) -> dict[str, Tensor]:
        sm = self.engine.sm if linear.stacked is None else EXPERTS_SM
        storage = mixed_gemm(self.layout, sm, INT8, 1)
        return {
            "weight": Tensor(("out", "in"), INT8, None, storage=storage),
            "per_channel_scale": Tensor(("out",), MODEL_DTYPE, NOT_NEGATIVE),
        }

    def store(self, made: QuantizedLinear) -> Tensors:
        return {"weight": made.values, "per_channel_scale": stored(made.scale, self.engine.torch_dtype)}

    def read(self, own: Tensors, input_scale: torch.Tensor | None = None) -> QuantizedLinear:
        return QuantizedLinear(own["weight"], own["per_channel_scale"].float())

    def weight(self, own: Tensors, input_scale: torch.Tensor | None = None) -> torch.Tensor:
        return weight_only_quant_matmul.dequantized(own["weight"], own["per_channel_scale"]).float()

    def prepared(self, own: Tensors) -> Product:
        run = weight_only_quant_matmul.prepare(
            own["weight"], own["per_channel_scale"], self.engine.torch_dtype, self.scheme.bits, packing.arranged
        )
        return lambda read: run(read.x)

    def product(self, own: Tensors, read: Activation) -> torch.Tensor:
        return weight_only_quant_matmul.reference(
            read.x, own["weight"], own["per_channel_scale"], self.scheme.bits, self.engine.sm
        )
