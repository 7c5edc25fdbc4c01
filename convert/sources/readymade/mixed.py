"""A folder whose linears are not all quantized alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ....plugins.lazy import torch
from ...errors import InputError
from ...numbers.quantized import QuantizedLinear
from .kinds import WHOLE_ROW, Expected, ReadyMade
from .unpacking import Tensors


@dataclass(frozen=True)
class Mixed(ReadyMade):
    """Several ways, each of some linears.

    Attributes:
        ways: by the full name of a linear.
    """

    ways: Mapping[str, ReadyMade] = field(default_factory=dict)

    @staticmethod
    def of_ways(method: str, ways: Mapping[str, ReadyMade]) -> Mixed:
        """The mixture of some ways, of which there is at least one."""
        first = next(iter(ways.values()))
        return Mixed(
            first.file,
            method,
            first.bits,
            WHOLE_ROW,
            left_out=first.left_out,
            cache_scales=first.cache_scales,
            cache=first.cache,
            ways=ways,
        )

    def of(self, linear: str) -> ReadyMade:
        if linear not in self.ways:
            raise InputError(f"{self.file.name}: says nothing of {linear}, whose tensors are quantized; correct it")
        return self.ways[linear]

    @property
    def algo(self) -> str | None:
        return None

    def tensors(self, name: str, out_features: int, in_features: int) -> dict[str, Expected]:
        return self.of(name).tensors(name, out_features, in_features)

    def weight(self, tensors: Tensors, name: str) -> torch.Tensor:
        return self.of(name).weight(tensors, name)

    def quantized(self, tensors: Tensors, name: str) -> QuantizedLinear:
        return self.of(name).quantized(tensors, name)

    def kept(self, tensors: Tensors, name: str, group_size: int, dtype: torch.dtype) -> QuantizedLinear:
        return self.of(name).kept(tensors, name, group_size, dtype)
