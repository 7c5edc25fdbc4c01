"""SmoothQuant without a plugin: TensorRT's own quantize and dequantize layers around a product of INT8."""

from __future__ import annotations

from dataclasses import replace

from .....plugins import quantize_dequantize
from .....plugins.identity import Generations
from .....plugins.lazy import torch
from ....models.pieces import Group, Linear
from ....numbers.quantized import QuantizedLinear
from ....quantize.scheme import CHANNEL, Scheme
from ..ranks import FLOAT32, INT8, MODEL_DTYPE, Tensor
from ..releases import FIRST, LAST
from ..values import POSITIVE
from .base import Activation, Format, Tensors
from .smoothquant import scheme


class SmoothQuantLayers(Format):
    """``weight`` int8, a scale per channel, one of the activations, and the reciprocal of the smoother."""

    schemes = (replace(scheme("W8A8_SQ_PER_CHANNEL", CHANNEL, static=True), experts=Scheme()),)
    flagged = False

    @classmethod
    def experts(cls, scheme: Scheme) -> tuple[str, str] | None:
        return FIRST, LAST

    @classmethod
    def gpus(cls, scheme: Scheme) -> Generations:
        return quantize_dequantize.GPUS

    def tensors(self, linear: Linear, group: Group) -> dict[str, Tensor]:
        return {
            "weight": Tensor(("out", "in"), INT8, None),
            "activation_scaling_factor": Tensor((1,), FLOAT32, POSITIVE),
            "weights_scaling_factor": Tensor(("out",), FLOAT32, POSITIVE),
            "prequant_scaling_factor": Tensor(("in",), MODEL_DTYPE, POSITIVE),
        }

    def store(self, made: QuantizedLinear) -> Tensors:
        assert made.range is not None
        return {
            "weight": made.values,
            "activation_scaling_factor": torch.tensor([made.range / 127]),
            "weights_scaling_factor": made.scale,
            "prequant_scaling_factor": made.prescale(),
        }

    def read(self, own: Tensors, input_scale: torch.Tensor | None = None) -> QuantizedLinear:
        return QuantizedLinear(
            own["weight"],
            own["weights_scaling_factor"],
            smoother=1 / own["prequant_scaling_factor"].float(),
            range=127 * float(own["activation_scaling_factor"]),
        )

    def product(self, own: Tensors, read: Activation) -> torch.Tensor:
        names = ("prequant_scaling_factor", "activation_scaling_factor", "weights_scaling_factor")
        return quantize_dequantize.reference(read.x, own["weight"], *(own[suffix] for suffix in names))
