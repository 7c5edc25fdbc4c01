"""Linears that are not quantized."""

from __future__ import annotations

from .....plugins import float_product
from .....plugins.lazy import torch
from ....models.pieces import Group, Linear
from ....numbers.quantized import QuantizedLinear
from ....quantize.scheme import Scheme
from ..ranks import MODEL_DTYPE, Tensor
from ..releases import FIRST, LAST
from .base import Activation, Format, Product, Tensors


class Floating(Format):
    """``weight`` in the model's dtype."""

    schemes = (Scheme(),)
    fuses_mlp = True

    @classmethod
    def experts(cls, scheme: Scheme) -> tuple[str, str] | None:
        return FIRST, LAST

    def tensors(self, linear: Linear, group: Group) -> dict[str, Tensor]:
        return {"weight": Tensor(("out", "in"), MODEL_DTYPE)}

    def store(self, made: QuantizedLinear) -> Tensors:
        return {"weight": made.values}

    def read(self, own: Tensors, input_scale: torch.Tensor | None = None) -> QuantizedLinear:
        return QuantizedLinear(own["weight"].float(), torch.ones(1))

    def prepared(self, own: Tensors) -> Product:
        run = float_product.prepare(own["weight"].to(self.engine.torch_dtype))
        return lambda read: run(read.x)

    def product(self, own: Tensors, read: Activation) -> torch.Tensor:
        return torch.nn.functional.linear(read.x.float(), own["weight"].float()).to(self.engine.torch_dtype)
