"""What a target is: a runtime that reads what is written, and what a quantized model becomes for it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ...plugins.lazy import torch
from ..errors import InputError
from ..models.encoder_head import EncoderHead
from ..models.ends import Embedding, Head
from ..models.pieces import Norm
from ..numbers.finite import finite
from ..numbers.quantized import QuantizedLinear
from ..quantize.precision import KV_CACHE, Precision
from ..quantize.scheme import Scheme

if TYPE_CHECKING:
    from ..files.written import Written
    from ..quantize.layer import QuantizedLayer
    from ..quantize.quantization import Quantization
    from ..sources.folder import Source

Tensors = dict[str, "torch.Tensor"]
WIDER = "use --dtype bfloat16"


@dataclass(frozen=True)
class Wishes:
    """What is asked of a folder, besides how its linears are quantized.

    Attributes:
        tp_size, pp_size, moe_ep_size: ranks that it is cut for.
        sm: the GPU generation that integers are arranged for, where their format has an order for each.
        alpha: SmoothQuant's migration strength, None where it was searched.
        shard_size: bytes that one file of tensors may hold.
    """

    tp_size: int = 1
    pp_size: int = 1
    moe_ep_size: int = 1
    sm: int = 80
    alpha: float | None = None
    shard_size: int = 5 * 10**9


class Writer(Protocol):
    """A target's files while they are filled: every call stores what it is given, in any order."""

    def write_embedding(self, embedding: Embedding) -> None: ...

    def write_layer(self, index: int, tensors: Tensors) -> None: ...

    def write_head(self, head: Head) -> None: ...

    def write_encoder_head(self, head: EncoderHead) -> None: ...

    def finish(self, written: Written) -> None:
        """Close the files, each of which must be complete by now."""


class Target(ABC):
    """A quantized model for one runtime.

    Class attributes:
        name: what --target calls it.
        title: what reads it.
        caches: what a KV cache can be quantized to.
        cuts: ranks may be asked for, and a GPU generation.
        wider: what to do where float16 is too narrow.
        turned_tables: its runtime's rotary tables leave out yarn's attention factor, so that queries bring it.

    Attributes:
        precision: the scheme of each group of linears; dtype: of all that is not quantized.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    caches: ClassVar[tuple[str, ...]] = KV_CACHE
    cuts: ClassVar[bool] = False
    wider: ClassVar[str] = WIDER
    turned_tables: ClassVar[bool] = False

    precision: Precision
    dtype: str

    @contextmanager
    def advising(self) -> Iterator[None]:
        """What float16 does not hold is refused with what works here."""
        try:
            yield
        except InputError as error:
            raise InputError(str(error).replace(WIDER, self.wider)) from None

    @classmethod
    @abstractmethod
    def of(cls, how: Quantization, wishes: Wishes, source: Source) -> Target:
        """The target of a conversion.

        Raises:
            InputError: something that its runtime does not read, or would read wrongly.
        """

    @classmethod
    @abstractmethod
    def schemes(cls) -> Mapping[str, Scheme]:
        """What it holds, by every name that --quant may have for it."""

    @classmethod
    @abstractmethod
    def scheme(cls, name: str | None, group_size: int = 128) -> Scheme:
        """The scheme of one of these names; floating point for None.

        Args:
            group_size: input channels that share a scale, for schemes that leave a choice.

        Raises:
            InputError: a name that it does not hold, or a group size that its runtime does not know.
        """

    @classmethod
    @abstractmethod
    def check_precision(cls, precision: Precision) -> None:
        """Raise InputError for a mixture of schemes that its runtime does not know."""

    @classmethod
    @abstractmethod
    def quant(cls, precision: Precision) -> str | None:
        """What it calls a model that is quantized so; None in floating point."""

    @classmethod
    def output_dtype(cls, asked: str, source: str) -> str:
        """The dtype of what is not quantized: as asked, else the source's, float32 becoming float16 as upstream has
        it."""
        if asked == "auto":
            return "float16" if source == "float32" else source
        return asked

    @abstractmethod
    def having(self, precision: Precision) -> Target:
        """The same with other schemes."""

    @abstractmethod
    def computed(self, scheme: Scheme, made: QuantizedLinear) -> torch.Tensor:
        """The weight that the runtime multiplies with, float32 [out, in]."""

    @abstractmethod
    def layer(self, index: int, quantized: QuantizedLayer) -> Tensors:
        """A layer's tensors, whole, as its writer wants them."""

    @abstractmethod
    def configs(self) -> dict[str, dict[str, Any]]:
        """What the runtime reads beside the tensors, by name of the JSON file."""

    @property
    def notes(self) -> list[str]:
        """What its reader should know, or will not find."""
        return []

    @property
    def recorded(self) -> dict[str, Any]:
        """What enginesmith.json says of it besides."""
        return {}

    def embedding(self, embedding: Embedding) -> Embedding:
        """In the target's dtype."""
        family, positions = self.precision.model.family, embedding.positions
        tokens = self.stored(embedding.tokens, family.embedding)
        if positions is not None:
            positions = self.stored(positions, str(family.position_embedding))
        types = embedding.types
        if types is not None:
            types = self.stored(types, str(family.type_embedding))
        norm = self.norm(family.embedding_norm, embedding)
        return replace(embedding, tokens=tokens, positions=positions, norm=norm, types=types)

    def encoder_head(self, head: EncoderHead) -> EncoderHead:
        """In the target's dtype, or in what an engine has there whatever its dtype."""
        return head.map(lambda of, suffix, x: to_dtype(x, of.dtype or self.dtype, f"{of.tensor}.{suffix}"))

    def head(self, head: Head) -> Head:
        """In the target's dtype."""
        family, bias = self.precision.model.family, head.bias
        if bias is not None:
            bias = self.stored(bias, str(family.head_bias))
        weight = self.stored(head.weight, str(family.head))
        return replace(head, weight=weight, bias=bias, norm=self.norm(family.final_norm, head))

    def norm(self, norm: Norm | None, end: Embedding | Head) -> Tensors:
        """The norm of an end, by last name."""
        return {suffix: self.stored(of, f"{norm.tensor}.{suffix}") for suffix, of in end.norm.items() if norm}

    def stored(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """A tensor of an end in the target's dtype."""
        return to_dtype(tensor, self.dtype, name)


def to_dtype(tensor: torch.Tensor, dtype: str, name: str, way: str = WIDER) -> torch.Tensor:
    """Cast, refusing anything that would not be a finite number in the file.

    Args:
        way: what to do where the dtype is too narrow.
    """
    cast = tensor.to(getattr(torch, dtype))
    if cast.element_size() > 1 and not finite(cast):
        largest = float(tensor.abs().max())
        if math.isfinite(largest) and dtype == "float16":
            raise InputError(f"{name} does not fit float16 (it reaches {largest:.3g}); {way}")
        raise InputError(f"{name} is not finite in {dtype} (it reaches {largest:.3g}); the weights are unusable")
    return cast
