"""How a folder holds linears of one scheme."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from ....plugins.lazy import torch
from ...errors import InputError
from ...numbers.quantized import QuantizedLinear
from ...numbers.rounding import kept
from ...quantize.scheme import Scheme
from ...sources.readymade.kinds import ANEW

Tensors = dict[str, "torch.Tensor"]
# Shape and dtype of a tensor.
Spec = tuple[list[int], str]


@dataclass(frozen=True)
class Format(ABC):
    """A format, of linears of one of its schemes. A linear's tensors are named by their suffixes.

    Class attributes:
        schemes: by every name that --quant may have for them.
        group_sizes: input channels that may share a scale, where the user may choose.
        out_multiple, in_multiple: what the sizes of a linear must be multiples of.
        divides: its linears may have a smoother where no norm makes their input; behind_norms: and everywhere.

    Attributes:
        dtype: of the model.
    """

    scheme: Scheme
    dtype: str

    schemes: ClassVar[Mapping[str, Scheme]]
    group_sizes: ClassVar[tuple[int, ...]] = ()
    out_multiple: ClassVar[int] = 1
    in_multiple: ClassVar[int] = 1
    divides: ClassVar[bool] = False
    behind_norms: ClassVar[bool] = False

    @abstractmethod
    def tensors(self, out_features: int, in_features: int, behind_norm: bool) -> dict[str, Spec]:
        """What a linear consists of, without its bias.

        Args:
            behind_norm: a norm makes its input, and takes what the input is divided by.
        """

    @abstractmethod
    def store(self, made: QuantizedLinear) -> Tensors:
        """A linear's tensors, as the file holds them."""

    def check(self, out_features: int, in_features: int, name: str) -> None:
        """Raise InputError unless a linear's sizes fit."""
        size = self.scheme.group_size
        if size is not None and in_features % size:
            works = " or ".join(str(one) for one in self.group_sizes if in_features % one == 0)
            raise InputError(
                f"{name}: --group_size {size} cannot cut {in_features} input channels; "
                f"{f'{works} can' if works else 'none that is known can'}; or --exclude it"
            )
        for what, count, multiple in (("out", out_features, self.out_multiple), ("in", in_features, self.in_multiple)):
            if count % multiple:
                raise InputError(f"{name}: {count} {what}_features are no multiple of {multiple}; --exclude it")

    def check_smoother(self, made: QuantizedLinear, behind_norm: bool, name: str) -> None:
        """Raise InputError where what divides a linear's input would be lost."""
        holds = self.behind_norms if behind_norm else self.divides
        if made.smoother is not None and not holds and not (made.smoother == 1).all():
            raise InputError(
                f"{name}: its input is scaled channel by channel, which {self.scheme.name} does not hold; {ANEW}"
            )

    def kept(self, value: float) -> float:
        """A scale as the model's dtype keeps it."""
        return float(kept(torch.tensor([value]), getattr(torch, self.dtype)))

    def number(self, value: float | torch.Tensor) -> torch.Tensor:
        """A scale by itself, float32 []."""
        return torch.as_tensor(value, dtype=torch.float32).reshape(())


class Floating(Format):
    """``weight`` in the model's dtype."""

    schemes: ClassVar[Mapping[str, Scheme]] = {}

    def tensors(self, out_features: int, in_features: int, behind_norm: bool) -> dict[str, Spec]:
        return {"weight": ([out_features, in_features], self.dtype)}

    def store(self, made: QuantizedLinear) -> Tensors:
        return {"weight": made.values.to(getattr(torch, self.dtype))}


def named(*schemes: Scheme, **also: str) -> dict[str, Scheme]:
    """Schemes by their names; also: other names of some of them."""
    by_name = {str(scheme.name): scheme for scheme in schemes}
    return by_name | {other: by_name[name] for other, name in also.items()}


def sized(scheme: Scheme, group_size: int, sizes: tuple[int, ...]) -> Scheme:
    """A scheme with groups of a size.

    Raises:
        InputError: its runtime does not know it.
    """
    if not sizes or scheme.group_size is None:
        return scheme
    if group_size not in sizes:
        raise InputError(f"--group_size {group_size}: {scheme.name} takes {' or '.join(map(str, sizes))} here")
    return replace(scheme, group_size=group_size)
