"""QServe: 4-bit weights, INT8 activations with one scale a token; per group (QoQ, two levels) or per channel.

The kernel unfolds (k4 - z) s2 as k4 s2 + (-z s2), a byte modulo 256, and per channel subtracts z s1 times the sum of a
row's activations: files hold those products, -z s2 and z s1. Of every 32 outputs x 32 inputs, as tensor-core fragments
take them, a byte holds output r in its low nibble and r + 16 in its high one. Scales and zeros lie by group, those of
32 outputs as 0 8 16 24 1 9 17 25 ...
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

from .....plugins import kernels, qserve_gemm, quantize_per_token, rmsnorm_quantization
from .....plugins.identity import Generations, Plugin
from .....plugins.lazy import torch
from .....plugins.quantized_rows import INT8 as INT8_ROWS
from ....models.pieces import Group, Linear
from ....numbers.nibbles import check_multiple
from ....numbers.qserve import GROUP as GROUP_SIZE
from ....numbers.qserve import LEVELS
from ....numbers.quantized import QuantizedLinear
from ....quantize.scheme import CHANNEL, GROUP, INTEGERS, Scheme
from ..ranks import FLOAT16, INT8, Tensor
from ..storage import BY_GROUP, FRAGMENTS
from ..values import POSITIVE, SECOND_SCALE, Zeros
from .base import Activation, Format, Product, Rounding, Tensors

# So many tokens are multiplied by integers as they are packed.
FEW_TOKENS = 64


class QServe(Format):
    """What both have: ``weight`` in fragments, ``s1_scales`` per channel, float16."""

    whole_model = True

    @classmethod
    def gpus(cls, scheme: Scheme) -> Generations:
        return qserve_gemm.PLUGIN.gpus

    @classmethod
    def plugins(cls, scheme: Scheme) -> tuple[Plugin, ...]:
        return (qserve_gemm.PLUGIN, rmsnorm_quantization.PLUGIN, quantize_per_token.PLUGIN)

    def check(self, out_features: int, in_features: int, name: str) -> None:
        check_multiple(f"{name}: in_features", in_features, qserve_gemm.PLUGIN.in_multiple, "QServe")
        check_multiple(f"{name}: out_features", out_features, qserve_gemm.PLUGIN.out_multiple, "QServe")

    def tensors(self, linear: Linear, group: Group) -> dict[str, Tensor]:
        return {
            "weight": Tensor(("out", "in"), INT8, None, storage=FRAGMENTS),
            "s1_scales": Tensor(("out",), FLOAT16, POSITIVE),
        }

    def rounding(self, input_scale: torch.Tensor | None) -> Rounding:
        return Rounding(INT8_ROWS, sums=True)

    def prepared(self, own: Tensors) -> Product:
        many = self.many(own)
        if not kernels.behind(own["weight"]):
            return many
        few = self.few(own)
        return lambda read: (few if len(read.x) <= FEW_TOKENS else many)(read)

    def many(self, own: Tensors) -> Product:
        """``prepared``, by whole INT8 products."""
        return partial(self.product, own)

    @abstractmethod
    def few(self, own: Tensors) -> Product:
        """``prepared`` for few tokens on a GPU, from integers as they are packed."""


class QServeGroup(QServe):
    """Adds ``s2_scales`` and ``s2_zeros``, whole numbers by group."""

    schemes = (Scheme("W4A8_QSERVE_PER_GROUP", INTEGERS, 4, GROUP, GROUP_SIZE, zeros=True, activations="int8"),)

    def tensors(self, linear: Linear, group: Group) -> dict[str, Tensor]:
        return super().tensors(linear, group) | {
            "s2_scales": Tensor(("out", "groups"), INT8, SECOND_SCALE, storage=BY_GROUP),
            "s2_zeros": Tensor(("out", "groups"), INT8, Zeros("s2_scales", 0, LEVELS), storage=BY_GROUP),
        }

    def store(self, made: QuantizedLinear) -> Tensors:
        assert made.zero is not None
        assert made.second is not None
        return {
            "weight": made.values,
            "s1_scales": made.second,
            "s2_scales": made.scale,
            "s2_zeros": -made.zero * made.scale,
        }

    def read(self, own: Tensors, input_scale: torch.Tensor | None = None) -> QuantizedLinear:
        # z s2 <= 240 fits a byte, so it is what the negated byte says.
        zero = (-own["s2_zeros"]).view(torch.uint8) // own["s2_scales"].view(torch.uint8)
        return QuantizedLinear(own["weight"], own["s2_scales"], zero.to(torch.int8), own["s1_scales"])

    def many(self, own: Tensors) -> Product:
        weight, scales = qserve_gemm.unfolded(own["weight"], own["s2_scales"], own["s2_zeros"]), own["s1_scales"]

        def product(read: Activation) -> torch.Tensor:
            assert read.scale is not None
            return qserve_gemm.scaled_product(read.x, read.scale, weight, scales)

        return product

    def few(self, own: Tensors) -> Product:
        from .....plugins.qserve_gemm_triton import run_per_group

        packed, scales = FRAGMENTS.store(own["weight"]), own["s1_scales"]
        second = [BY_GROUP.store(own[suffix]) for suffix in ("s2_scales", "s2_zeros")]

        def product(read: Activation) -> torch.Tensor:
            assert read.scale is not None
            return run_per_group(read.x, read.scale, packed, scales, *second)

        return product

    def product(self, own: Tensors, read: Activation) -> torch.Tensor:
        assert read.scale is not None
        names = ("s1_scales", "s2_scales", "s2_zeros")
        return qserve_gemm.reference_per_group(read.x, read.scale, own["weight"], *(own[suffix] for suffix in names))


class QServeChannel(QServe):
    """Adds ``s1_szeros``, zero times scale."""

    schemes = (Scheme("W4A8_QSERVE_PER_CHANNEL", INTEGERS, 4, CHANNEL, zeros=True, activations="int8"),)

    def tensors(self, linear: Linear, group: Group) -> dict[str, Tensor]:
        return super().tensors(linear, group) | {"s1_szeros": Tensor(("out",), FLOAT16, Zeros("s1_scales", 0, LEVELS))}

    def store(self, made: QuantizedLinear) -> Tensors:
        assert made.zero is not None
        scaled_zero = (made.zero.float() * made.scale.float()).half()
        return {"weight": made.values, "s1_scales": made.scale, "s1_szeros": scaled_zero}

    def read(self, own: Tensors, input_scale: torch.Tensor | None = None) -> QuantizedLinear:
        zero = (own["s1_szeros"].float() / own["s1_scales"].float()).round_().to(torch.int8)
        return QuantizedLinear(own["weight"], own["s1_scales"], zero)

    def weight(self, own: Tensors, input_scale: torch.Tensor | None = None) -> torch.Tensor:
        """k4 s1 less the stored z s1."""
        return own["weight"].float() * own["s1_scales"].float()[:, None] - own["s1_szeros"].float()[:, None]

    def product(self, own: Tensors, read: Activation) -> torch.Tensor:
        assert read.scale is not None
        assert read.total is not None
        scales = own["s1_scales"], own["s1_szeros"]
        return qserve_gemm.reference_per_channel(read.x, read.scale, read.total, own["weight"], *scales)

    def few(self, own: Tensors) -> Product:
        from .....plugins.qserve_gemm_triton import run_per_channel

        packed = FRAGMENTS.store(own["weight"])

        def product(read: Activation) -> torch.Tensor:
            assert read.scale is not None
            assert read.total is not None
            return run_per_channel(read.x, read.scale, read.total, packed, own["s1_scales"], own["s1_szeros"])

        return product
