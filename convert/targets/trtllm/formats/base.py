"""What a format is: all that there is to know of one way in which TensorRT-LLM holds and executes linears."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from .....plugins import quantize_per_token, quantize_tensor
from .....plugins.identity import ANY, Generations, Plugin
from .....plugins.lazy import torch
from .....plugins.quantized_rows import smoothed
from ....models.pieces import Group, Linear
from ....numbers.quantized import QuantizedLinear
from ....quantize.scheme import Scheme
from ..ranks import Tensor

Tensors = dict[str, "torch.Tensor"]
# What exclude_modules holds where a checkpoint says nothing.
NEVER = ("*lm_head", "*router", "*vocab_embedding", "*position_embedding", "*block_embedding", "*shared_expert_gate")


@dataclass(frozen=True)
class Engine:
    """What a checkpoint is made for.

    Attributes:
        dtype: of activations, "float16" or "bfloat16".
        sm: the GPU generation that integers are arranged for, where their format has an order for each.
    """

    dtype: str
    sm: int = 80

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


@dataclass(frozen=True)
class Activation:
    """What a linear reads.

    Attributes:
        x: [tokens, in]: the engine's dtype, or int8 or e4m3 where the input is quantized before the linear.
        scale: float32 [tokens, 1] of one quantized per token.
        total: float16 [tokens, 1], the sum of each row before it was quantized, where QServe wants it.
    """

    x: torch.Tensor
    scale: torch.Tensor | None = None
    total: torch.Tensor | None = None


@dataclass(frozen=True)
class Rounding:
    """How an input is rounded before the linears that read it.

    Attributes:
        kind: to "int8" or "fp8"; None where it stays as it is.
        scale: float32 [1] that it is multiplied by; without one, each token has its own.
        sums: tokens are summed before, for QServe.
    """

    kind: str | None = None
    scale: torch.Tensor | None = None
    sums: bool = False

    def of(self, x: torch.Tensor, smoother: torch.Tensor | None = None) -> Activation:
        """What linears read of x, [tokens, in] in the engine's dtype, divided by a smoother first."""
        if self.kind is None:
            return Activation(smoothed(x, smoother))
        if self.sums:
            integers, scale, total = quantize_per_token.run_with_sums(x, smoother)
            return Activation(integers, scale.half(), total)
        if self.scale is None:
            return Activation(*quantize_per_token.run(x, smoother, kind=self.kind))
        return Activation(quantize_tensor.run(x, self.scale, smoother, kind=self.kind))


# What a linear computes of what it reads, [tokens, out] in the engine's dtype.
Product = Callable[[Activation], "torch.Tensor"]


@dataclass(frozen=True)
class Format(ABC):
    """A format, of linears of one of its schemes in one engine. A linear's tensors are named by their suffixes.

    Class attributes:
        schemes: by TensorRT-LLM's QuantAlgo names.
        arranged: integers are stored in the order of one GPU generation's kernels.
        weight_only: activations reach the plugin in the engine's dtype, which has a kernel of its own for few tokens.
        adds_bias: the plugin does, on every rank, also where an all-reduce follows.
        whole_block: TensorRT-LLM executes it with an attention, an MLP and norms of their own.
        whole_model: and this one with a model of its own.
        fuses_mlp: gate and up products may be one matrix.
        excludes: exclude_modules may name linears that stay in floating point; else they make a mixture.
        never, ending: what exclude_modules names besides, and how the names of linears end there.
        shared: last names of what all experts of a mixture have one of.
        has_zero_point, pre_quant_scale: what the configuration says of it.
        flagged: TensorRT-LLM looks at those two.
    """

    scheme: Scheme
    engine: Engine

    schemes: ClassVar[tuple[Scheme, ...]]
    arranged: ClassVar[bool] = False
    weight_only: ClassVar[bool] = False
    adds_bias: ClassVar[bool] = False
    whole_block: ClassVar[bool] = False
    whole_model: ClassVar[bool] = False
    fuses_mlp: ClassVar[bool] = False
    excludes: ClassVar[bool] = True
    never: ClassVar[tuple[str, ...]] = NEVER
    ending: ClassVar[str] = ""
    shared: ClassVar[tuple[str, ...]] = ()
    has_zero_point: ClassVar[bool] = False
    pre_quant_scale: ClassVar[bool] = False
    flagged: ClassVar[bool] = True

    @classmethod
    def experts(cls, scheme: Scheme) -> tuple[str, str] | None:
        """The first and the last release whose engines execute a mixture's experts as they are held here under it; None
        where none does."""
        return None

    @classmethod
    def gpus(cls, scheme: Scheme) -> Generations:
        """The GPU generations that it can be built for."""
        return ANY

    @classmethod
    def plugins(cls, scheme: Scheme) -> tuple[Plugin, ...]:
        """Those of which a network has nodes."""
        return ()

    @classmethod
    def enables(cls, scheme: Scheme) -> tuple[Plugin, ...]:
        """Those that a build switches on."""
        return cls.plugins(scheme)

    @classmethod
    def group_sizes(cls, scheme: Scheme) -> tuple[int, ...]:
        """Input channels that may share a scale, where the user may choose."""
        return ()

    @classmethod
    def entry(cls, scheme: Scheme) -> dict[str, Any]:
        """What quant_cfg.json says of a module."""
        return {"quant_algo": scheme.name}

    def check(self, out_features: int, in_features: int, name: str) -> None:  # noqa: B027
        """Raise InputError, naming sizes that would work, unless the kernels take a rank's weight of this shape."""

    @abstractmethod
    def tensors(self, linear: Linear, group: Group) -> dict[str, Tensor]:
        """What executes a linear that reads the input of a group, without its bias."""

    def input_scale(self, group: Group) -> str | None:
        """Name inside the layer of the scale, float32 [1], that quantizes an input before its linears."""
        return None

    def stored_input_scale(self, made: QuantizedLinear) -> torch.Tensor:
        """That scale, of any of the linears that read the input."""
        raise AssertionError(f"{self.scheme.name} has no scale before its linears")

    @abstractmethod
    def store(self, made: QuantizedLinear) -> Tensors:
        """A linear's tensors, not yet packed; where a file has the model's dtype, some are still wider."""

    @abstractmethod
    def read(self, own: Tensors, input_scale: torch.Tensor | None = None) -> QuantizedLinear:
        """The inverse of ``store`` and ``stored_input_scale``, as far as their rounding allows."""

    def weight(self, own: Tensors, input_scale: torch.Tensor | None = None) -> torch.Tensor:
        """What the plugin multiplies its input with, for many tokens: float32 [out, in]; own is as stored."""
        return self.read(own, input_scale).dequantize()

    def divisor(self, own: Tensors) -> torch.Tensor | None:
        """What an operation before the linear divides its input by, [in]; None where there is no such operation."""
        return None

    def rounding(self, input_scale: torch.Tensor | None) -> Rounding:
        """What the norm, or the operation before the linear, does to its input."""
        return Rounding()

    def prepared(self, own: Tensors) -> Product:
        """``product`` for many calls; however few tokens come, as the kernel for many computes it."""
        return partial(self.product, own)

    @abstractmethod
    def product(self, own: Tensors, read: Activation) -> torch.Tensor:
        """What the linear computes, [tokens, out] in the engine's dtype; its bias is added behind it, or here."""


def module_of(group: Group) -> str:
    """The attention or MLP that a group of linears belongs to; the first of them."""
    return group.linears[0].split(".")[0]


def modules_of(group: Group) -> set[str]:
    """All of them: behind one norm the linears of both may read one input."""
    return {linear.split(".")[0] for linear in group.linears}
