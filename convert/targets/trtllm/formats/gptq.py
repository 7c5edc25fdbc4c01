"""GPTQ: 4- or 8-bit integers with zeros, in the order of a mixed GEMM; nothing divides the input."""

from __future__ import annotations

from .....plugins.lazy import torch
from .....plugins.weight_only_groupwise_quant_matmul import dequantized, reference
from ....models.pieces import Group, Linear
from ....numbers.quantized import QuantizedLinear
from ....quantize.scheme import GPTQ, GROUP, INTEGERS, Scheme
from ..ranks import MODEL_DTYPE, Tensor
from ..releases import FIRST
from ..storage import mixed_gemm
from ..values import POSITIVE, Zeros
from .base import Activation, Product, Tensors
from .groupwise import Groupwise
from .weight_only import by_channel


class Gptq(Groupwise):
    """Adds ``zero``, what is added to a dequantized weight: -zero point * scale."""

    schemes = tuple(
        Scheme(
            f"W{bits}A16_GPTQ",
            INTEGERS,
            bits,
            GROUP,
            128,
            zeros=True,
            rounding=GPTQ,
            experts=by_channel(f"W{bits}A16_GPTQ", bits),
        )
        for bits in (4, 8)
    )
    arranged = True
    has_zero_point = True

    @classmethod
    def experts(cls, scheme: Scheme) -> tuple[str, str] | None:
        """Later releases have experts in groups under it."""
        return (FIRST, "0.18.2") if scheme.bits == 4 else None

    def tensors(self, linear: Linear, group: Group) -> dict[str, Tensor]:
        storage = mixed_gemm(self.layout, self.engine.sm, self.engine.dtype, 2)
        half = 2 ** (self.scheme.bits - 1)  # GPTQ's two versions have offsets of half - 1 and half
        zeros = Zeros("weights_scaling_factor", -half, half)
        return {
            "weight": Tensor(("out", "in"), MODEL_DTYPE, None, storage=storage),
            "weights_scaling_factor": Tensor(("groups", "out"), MODEL_DTYPE, POSITIVE),
            "zero": Tensor(("groups", "out"), MODEL_DTYPE, zeros),
        }

    def store(self, made: QuantizedLinear) -> Tensors:
        zero = torch.zeros_like(made.scale) if made.zero is None else -made.zero.float() * made.scale
        return {
            "weight": made.values,
            "weights_scaling_factor": made.scale.t().contiguous(),
            "zero": zero.t().contiguous(),
        }

    def read(self, own: Tensors, input_scale: torch.Tensor | None = None) -> QuantizedLinear:
        scale, zero = (own[suffix].float().t().contiguous() for suffix in ("weights_scaling_factor", "zero"))
        return QuantizedLinear(own["weight"], scale, (-zero / scale).round().to(torch.int8))

    def weight(self, own: Tensors, input_scale: torch.Tensor | None = None) -> torch.Tensor:
        scale, zero = (own[suffix].to(self.engine.torch_dtype) for suffix in ("weights_scaling_factor", "zero"))
        return dequantized(own["weight"], scale, zero, self.engine.sm).float()

    def prepared(self, own: Tensors) -> Product:
        return self.run(own, own["weights_scaling_factor"], zero=own["zero"])

    def product(self, own: Tensors, read: Activation) -> torch.Tensor:
        return reference(
            read.x,
            own["weight"],
            own["weights_scaling_factor"],
            zero=own["zero"],
            bias=own.get("bias"),
            bits=self.scheme.bits,
            sm=self.engine.sm,
        )
