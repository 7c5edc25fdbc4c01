"""FP8 with one scale per matrix: TensorRT's own quantize and dequantize layers, or the Gemm plugin."""

from __future__ import annotations

from functools import partial

from .....plugins import fp8, fp8_quantize_dequantize
from .....plugins.identity import Generations
from .....plugins.lazy import torch
from ....models.pieces import Group, Linear
from ....numbers.fp8 import range_scale
from ....numbers.quantized import QuantizedLinear
from ....quantize.scheme import E4M3, MATRIX, Scheme
from ..ranks import FLOAT8, FLOAT32, Tensor
from ..releases import FIRST, LAST
from ..values import POSITIVE
from .base import Activation, Format, Product, Tensors


class Fp8(Format):
    """``weight`` e4m3, ``weights_scaling_factor`` and ``activation_scaling_factor`` one number each."""

    schemes = (Scheme("FP8", E4M3, 8, MATRIX, activations="fp8", static=True),)
    shared = ("activation_scaling_factor",)
    fuses_mlp = True

    @classmethod
    def experts(cls, scheme: Scheme) -> tuple[str, str] | None:
        return FIRST, LAST

    @classmethod
    def gpus(cls, scheme: Scheme) -> Generations:
        return fp8_quantize_dequantize.GPUS

    def tensors(self, linear: Linear, group: Group) -> dict[str, Tensor]:
        return {
            "weight": Tensor(("out", "in"), FLOAT8),
            "activation_scaling_factor": Tensor((1,), FLOAT32, POSITIVE),
            "weights_scaling_factor": Tensor((1,), FLOAT32, POSITIVE),
        }

    def store(self, made: QuantizedLinear) -> Tensors:
        assert made.range is not None
        return {
            "weight": made.values,
            "weights_scaling_factor": made.scale,
            "activation_scaling_factor": range_scale(torch.tensor(made.range)),
        }

    def read(self, own: Tensors, input_scale: torch.Tensor | None = None) -> QuantizedLinear:
        largest = fp8.MAX * float(own["activation_scaling_factor"])
        return QuantizedLinear(own["weight"], own["weights_scaling_factor"], range=largest)

    def prepared(self, own: Tensors) -> Product:
        return partial(self.product, own | {"weight": fp8.held(own["weight"])})

    def product(self, own: Tensors, read: Activation) -> torch.Tensor:
        scales = own["activation_scaling_factor"], own["weights_scaling_factor"]
        return fp8_quantize_dequantize.reference(read.x, own["weight"], *scales)
