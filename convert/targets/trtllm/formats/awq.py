"""AWQ: 4-bit integers without zeros, the input scaled channel by channel; with FP8 activations W4A8_AWQ.

Files hold two rows a byte, whatever the GPU; the loader arranges them. Scales lie there by outputs and then groups:
0.16 turns what is taller than wide, later releases whatever comes. For W4A8 the loader also makes other factors of
those in the file: prequant_scaling_factor and weights_scaling_factor divided by what scales activations and weights
to FP8, and the product of the two as alpha.
"""

from __future__ import annotations

from .....plugins import fp8
from .....plugins.lazy import torch
from .....plugins.weight_only_groupwise_quant_matmul import dequantized, fp8_scale, reference
from ....models.pieces import Group, Linear
from ....numbers.fp8 import range_scale
from ....numbers.quantized import QuantizedLinear
from ....quantize.scheme import GROUP, INTEGERS, Scheme
from ..ranks import FLOAT32, INT8, MODEL_DTYPE, Tensor
from ..releases import LAST
from ..storage import ROW_PAIRS, TALL
from ..values import POSITIVE
from .base import Activation, Product, Tensors
from .groupwise import Groupwise

# Experts of a mixture have their own input: nothing scales it.
EXPERTS = Scheme("W4A16_AWQ", INTEGERS, 4, GROUP, 128)


class Awq(Groupwise):
    """Adds ``prequant_scaling_factor``; W4A8 ``activation_scaling_factor`` and ``weights_scaling_factor_2``."""

    schemes = (
        Scheme("W4A16_AWQ", INTEGERS, 4, GROUP, 128, prescaled=True, experts=EXPERTS),
        Scheme("W4A8_AWQ", INTEGERS, 4, GROUP, 128, activations="fp8", static=True, prescaled=True),
    )
    shared = ("prequant_scaling_factor",)
    pre_quant_scale = True

    @classmethod
    def experts(cls, scheme: Scheme) -> tuple[str, str] | None:
        """Before, loaders arranged what an AWQ file holds of experts as if it were one matrix."""
        return None if scheme.activations else ("0.19.0", LAST)

    @property
    def packed_for(self) -> int:
        return 89 if self.scheme.activations else 80

    def tensors(self, linear: Linear, group: Group) -> dict[str, Tensor]:
        tensors = {
            "weight": Tensor(("out", "in"), INT8, None, storage=ROW_PAIRS),
            "weights_scaling_factor": Tensor(("groups", "out"), MODEL_DTYPE, POSITIVE, storage=TALL),
            "prequant_scaling_factor": Tensor((1, "in"), MODEL_DTYPE, POSITIVE),
        }
        if self.scheme.activations:
            tensors["activation_scaling_factor"] = Tensor((1,), FLOAT32, POSITIVE)
            tensors["weights_scaling_factor_2"] = Tensor((1,), FLOAT32, POSITIVE)
        return tensors

    def store(self, made: QuantizedLinear) -> Tensors:
        prescale = made.prescale()
        tensors = {
            "weight": made.values,
            "weights_scaling_factor": made.scale.t().contiguous(),
            "prequant_scaling_factor": prescale[None],
        }
        if self.scheme.activations:
            assert made.range is not None
            # The quotient of prequant_scaling_factor and this one must fit the engine's dtype.
            least = prescale.amax() / torch.finfo(self.engine.torch_dtype).max
            scale = range_scale(torch.tensor(made.range, device=least.device))
            tensors["activation_scaling_factor"] = torch.maximum(scale, 1.01 * least)
            # Dequantized weights pass through FP8 too: their largest value takes its whole range.
            tensors["weights_scaling_factor_2"] = range_scale(made.dequantize().abs().amax())
        return tensors

    def read(self, own: Tensors, input_scale: torch.Tensor | None = None) -> QuantizedLinear:
        return QuantizedLinear(
            own["weight"],
            own["weights_scaling_factor"].float().t().contiguous(),
            smoother=1 / own["prequant_scaling_factor"][0].float(),
            range=fp8.MAX * float(own["activation_scaling_factor"]) if self.scheme.activations else None,
        )

    def weight(self, own: Tensors, input_scale: torch.Tensor | None = None) -> torch.Tensor:
        scale = own["weights_scaling_factor"].to(self.engine.torch_dtype)
        if not self.scheme.activations:
            return dequantized(own["weight"], scale, sm=self.engine.sm).float()
        second = own["weights_scaling_factor_2"]
        return fp8.saturate(dequantized(own["weight"], fp8_scale(scale, second)).float()).float() * second

    def prepared(self, own: Tensors) -> Product:
        scale, prequant, alpha = self.factors(own)
        return self.run(own, scale, prequant=prequant, alpha=alpha)

    def factors(self, own: Tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Weight scales, what multiplies the input, and alpha, as the loader hands them to the plugin."""
        scale, prequant = own["weights_scaling_factor"], own["prequant_scaling_factor"][0]
        if not self.scheme.activations:
            return scale, prequant, None
        activation, second = own["activation_scaling_factor"], own["weights_scaling_factor_2"]
        return (
            fp8_scale(scale, second),
            (prequant.float() / activation).to(self.engine.torch_dtype),
            activation * second,
        )

    def product(self, own: Tensors, read: Activation) -> torch.Tensor:
        scale, prequant, alpha = self.factors(own)
        return reference(
            read.x,
            own["weight"],
            scale,
            prequant,
            alpha=alpha,
            bias=own.get("bias"),
            bits=self.scheme.bits,
            sm=self.engine.sm,
        )
