"""FP8 with scales per output channel, and per token."""

from __future__ import annotations

from functools import partial

from .....plugins import fp8, fp8_rowwise_gemm, quantize_per_token, quantize_tensor, rmsnorm_quantization
from .....plugins.identity import Generations, Plugin
from .....plugins.lazy import torch
from .....plugins.quantized_rows import FP8
from ....models.pieces import Group, Linear
from ....numbers.quantized import QuantizedLinear
from ....quantize.scheme import CHANNEL, E4M3, Scheme
from ..ranks import FLOAT8, FLOAT32, Tensor
from ..values import POSITIVE
from .base import Activation, Format, Product, Rounding, Tensors


class Fp8Rowwise(Format):
    """``weight`` e4m3 and ``per_channel_scale``."""

    schemes = (Scheme("FP8_PER_CHANNEL_PER_TOKEN", E4M3, 8, CHANNEL, activations="fp8"),)
    whole_block = True
    never = ("*ln_f", "*ln_embed", "*lm_head")

    @classmethod
    def gpus(cls, scheme: Scheme) -> Generations:
        return fp8_rowwise_gemm.PLUGIN.gpus

    @classmethod
    def plugins(cls, scheme: Scheme) -> tuple[Plugin, ...]:
        return (fp8_rowwise_gemm.PLUGIN, rmsnorm_quantization.PLUGIN, quantize_per_token.PLUGIN)

    @classmethod
    def enables(cls, scheme: Scheme) -> tuple[Plugin, ...]:
        return (*cls.plugins(scheme), quantize_tensor.PLUGIN)

    def tensors(self, linear: Linear, group: Group) -> dict[str, Tensor]:
        return {"weight": Tensor(("out", "in"), FLOAT8), "per_channel_scale": Tensor(("out",), FLOAT32, POSITIVE)}

    def store(self, made: QuantizedLinear) -> Tensors:
        return {"weight": made.values, "per_channel_scale": made.scale}

    def read(self, own: Tensors, input_scale: torch.Tensor | None = None) -> QuantizedLinear:
        return QuantizedLinear(own["weight"], own["per_channel_scale"])

    def rounding(self, input_scale: torch.Tensor | None) -> Rounding:
        return Rounding(FP8)

    def prepared(self, own: Tensors) -> Product:
        return partial(self.product, own | {"weight": fp8.held(own["weight"])})

    def product(self, own: Tensors, read: Activation) -> torch.Tensor:
        assert read.scale is not None
        return fp8_rowwise_gemm.run(
            read.x, own["weight"], read.scale, own["per_channel_scale"], self.engine.torch_dtype
        )
