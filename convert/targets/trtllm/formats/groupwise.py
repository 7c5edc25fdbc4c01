"""What AWQ's and GPTQ's formats share: the group-wise plugin, which adds the bias, and scales by groups of inputs."""

from __future__ import annotations

from typing import Any

from .....plugins import weight_only_groupwise_quant_matmul
from .....plugins.identity import FP8_INTEGER, Generations, Plugin
from .....plugins.lazy import torch
from .....plugins.packing import Layout, layout_of
from .....plugins.weight_only_groupwise_quant_matmul import GROUP_SIZES
from ....errors import InputError
from ....quantize.scheme import Scheme
from .. import packing
from .base import Format, Product, Tensors


class Groupwise(Format):
    """``weights_scaling_factor`` in the model's dtype, by groups and then outputs."""

    weight_only = True
    adds_bias = True

    @classmethod
    def gpus(cls, scheme: Scheme) -> Generations:
        return FP8_INTEGER if scheme.activations else weight_only_groupwise_quant_matmul.PLUGIN.gpus

    @classmethod
    def plugins(cls, scheme: Scheme) -> tuple[Plugin, ...]:
        return (weight_only_groupwise_quant_matmul.PLUGIN,)

    @classmethod
    def group_sizes(cls, scheme: Scheme) -> tuple[int, ...]:
        return (128,) if scheme.activations else GROUP_SIZES

    @classmethod
    def entry(cls, scheme: Scheme) -> dict[str, Any]:
        flags = {"has_zero_point": cls.has_zero_point, "pre_quant_scale": cls.pre_quant_scale}
        return {"quant_algo": scheme.name, "group_size": scheme.group_size, **flags}

    @property
    def layout(self) -> Layout:
        """The order in which the kernels read integers."""
        return layout_of(self.scheme.bits, fp8=self.scheme.activations is not None)

    @property
    def packed_for(self) -> int:
        """A GPU generation whose shapes are those of all that the file is for."""
        return self.engine.sm

    def run(
        self,
        own: Tensors,
        scale: torch.Tensor,
        prequant: torch.Tensor | None = None,
        zero: torch.Tensor | None = None,
        alpha: torch.Tensor | None = None,
    ) -> Product:
        """What the plugin computes of a linear's integers, its bias and these, for many calls."""
        run = weight_only_groupwise_quant_matmul.prepare(
            own["weight"],
            scale,
            prequant,
            zero,
            alpha,
            own.get("bias"),
            dtype=self.engine.torch_dtype,
            bits=self.scheme.bits,
            sm=self.engine.sm,
            arranged=packing.arranged,
        )
        return lambda read: run(read.x)

    def check(self, out_features: int, in_features: int, name: str) -> None:
        assert self.scheme.group_size is not None
        check_groups(in_features, self.scheme.group_size, name)
        packing.check(self.layout, self.packed_for, (out_features, in_features), name)


def check_groups(in_features: int, group_size: int, name: str) -> None:
    """Raise InputError, naming what would work, unless groups of a size that kernels know cut the input evenly."""
    if group_size not in GROUP_SIZES or in_features % group_size:
        works = " or ".join(str(size) for size in GROUP_SIZES if in_features % size == 0)
        raise InputError(
            f"{name}: --group_size {group_size} cannot cut {in_features} input channels; "
            f"{works or 'neither 64 nor 128'} can; or --exclude it"
        )
