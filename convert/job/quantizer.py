"""One quantization of one model: a layer's source tensors in, what a checkpoint stores of it out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Any

import torch

from ..errors import InputError
from ..models.dimensions import Model
from ..models.forward import rotary_frequencies
from ..models.layer import Layer, Tensors
from ..models.rotation import Rotation
from ..numbers.rounding import Grouped
from ..quantize import half_range
from ..quantize.layer import quantize_layer, wanted
from ..quantize.options import QuantizeOptions
from ..quantize.precision import Precision
from ..sources.folder import Source
from ..statistics.layer import LayerStatistics, Wanted
from ..targets.trtllm.layout import check_kernels, layer_tensors
from ..targets.trtllm.ranks import MODEL_DTYPE
from ..targets.trtllm.ranks import Mapping as RankMapping
from ..targets.trtllm.storage import PLAIN

WIDER, OTHERWISE = "use --dtype bfloat16", "use another --quant or --exclude the linear"


@dataclass(frozen=True)
class Quantized:
    """A quantized layer.

    Attributes:
        layer: what it computes, in float32; for weight-only schemes exactly.
        tensors: what a checkpoint stores, whole (before any cut over ranks or packing), by name inside the layer.
        chosen: what the manifest says of it.
    """

    layer: Layer
    tensors: Tensors
    chosen: dict[str, Any]


@dataclass(frozen=True)
class Quantizer:
    """How every layer of a model is quantized.

    Attributes:
        precision: the scheme of each group of linears.
        dtype: the engine's, "float16" or "bfloat16".
        rotation: of the residual stream, or None.
    """

    precision: Precision
    choices: QuantizeOptions
    dtype: str
    rotation: Rotation | None = None

    @property
    def model(self) -> Model:
        return self.precision.model

    @property
    def wanted(self) -> Wanted:
        """What calibration must learn; where it runs at all, also whether float16 holds what a layer makes."""
        needed = reduce(or_, (wanted(scheme, self.choices) for scheme in self.precision.schemes))
        return needed | half_range.WANTED if needed != Wanted() and self.dtype == "float16" else needed

    def check(self, mapping: RankMapping) -> None:
        """Raise InputError where a rank's weight fits no kernel, or stages that TensorRT-LLM cannot tell apart."""
        self.precision.check_stages(mapping.stages(self.model.num_hidden_layers))
        check_kernels(self.precision, mapping)

    def quantize(
        self, index: int, source: Tensors, statistics: LayerStatistics, ready: Mapping[str, Grouped] | None = None
    ) -> Quantized:
        """One layer.

        Args:
            index: its number.
            source: its Hugging Face tensors, rotated where the model is.
            statistics: at least what is wanted; the rest is not looked at.
            ready: each linear as someone else quantized it, where it is kept so.
        """
        layer = Layer.of(with_attention_scaling(source, self.model), self.model)
        seen = with_scaled_queries(statistics.only(self.wanted), self.model)
        schemes, dtype = self.precision.layer(index), getattr(torch, self.dtype)
        with naming_layer(index):
            tensors, chosen = quantize_layer(layer, seen, schemes, self.choices, dtype, ready)
        stored = self.stored(index, tensors)
        layer.set_common(stored)
        return Quantized(layer, stored, chosen)

    def stored(self, index: int, tensors: Tensors) -> Tensors:
        """A layer's tensors in the dtypes that its file holds; packed integers are left logical."""
        specs = layer_tensors(self.model, self.precision.layer(index), self.dtype)

        def cast(name: str, tensor: torch.Tensor) -> torch.Tensor:
            own = specs[name].dtype
            dtype, way = (
                (self.dtype, WIDER) if own == MODEL_DTYPE else (own, f"its format has {own} there; {OTHERWISE}")
            )
            return to_dtype(tensor, dtype, f"layer {index}: {name}", way) if specs[name].storage is PLAIN else tensor

        return {name: cast(name, tensor) for name, tensor in tensors.items()}

    def source_layer(self, source: Source, index: int, device: torch.device) -> Tensors:
        """The Hugging Face tensors of one layer, rotated where the model is."""
        tensors = source.layer(index, device)
        return tensors if self.rotation is None else self.rotation.layer(tensors, self.model)

    def embedding(self, source: Source) -> torch.Tensor:
        """[vocab_size, hidden_size], before it is cast."""
        embedding = source.tensor(self.model.family.embedding)
        return embedding if self.rotation is None else self.rotation.rotate(embedding)

    def stored_embedding(self, embedding: torch.Tensor) -> torch.Tensor:
        """In the engine's dtype."""
        return to_dtype(embedding, self.dtype, self.model.family.embedding)

    def head(self, source: Source) -> tuple[torch.Tensor, torch.Tensor]:
        """The final norm [hidden_size] and the output projection [vocab_size, hidden_size], in the engine's dtype."""
        family = self.model.family
        norm, head = source.tensor(family.final_norm), source.head()
        if self.rotation is not None:
            norm, head = torch.ones_like(norm), self.rotation.rotate(head.float() * norm.float())
        return to_dtype(norm, self.dtype, family.final_norm), to_dtype(head, self.dtype, family.head)


def with_attention_scaling(source: Tensors, model: Model) -> Tensors:
    """Yarn multiplies cos and sin, hence each attention score twice; the engine's tables do not: q does it here."""
    scaling = rotary_frequencies(model)[1]
    if scaling == 1:
        return source
    names = (f"{model.family.attention[0]}.{kind}" for kind in ("weight", "bias"))
    return source | {name: source[name].float() * scaling**2 for name in names if name in source}


def with_scaled_queries(statistics: LayerStatistics, model: Model) -> LayerStatistics:
    """What calibration saw of queries, as they are behind ``with_attention_scaling``."""
    scaling, query = rotary_frequencies(model)[1] ** 2, model.family.attention[0]
    if scaling == 1:
        return statistics
    outputs = {part: y * (scaling if part == query else 1) for part, y in statistics.output_amax.items()}
    queries = None if statistics.query_amax is None else statistics.query_amax * scaling
    return replace(statistics, output_amax=outputs, query_amax=queries)


@contextmanager
def naming_layer(index: int) -> Iterator[None]:
    """What is refused inside is told with the layer's number."""
    try:
        yield
    except InputError as error:
        raise InputError(f"layer {index}: {error}") from None


def to_dtype(tensor: torch.Tensor, dtype: str, name: str, way: str = WIDER) -> torch.Tensor:
    """Cast, refusing anything that would not be a finite number in the checkpoint.

    Args:
        way: what to do where the dtype is too narrow.
    """
    cast = tensor.to(getattr(torch, dtype))
    if cast.is_floating_point() and cast.element_size() > 1 and not torch.isfinite(cast).all():
        largest = float(tensor.abs().max())
        if math.isfinite(largest) and dtype == "float16":
            raise InputError(f"{name} does not fit float16 (it reaches {largest:.3g}); {way}")
        raise InputError(f"{name} is not finite in {dtype} (it reaches {largest:.3g}); the weights are unusable")
    return cast
