"""One quantization of one model: a layer's source tensors in, what they become out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from ..errors import naming
from ..models.ends import Embedding, Head
from ..models.layer import Layer, Tensors
from ..models.model import Model
from ..models.rotary import rotary_frequencies, with_scaled_queries
from ..models.rotation import Rotation
from ..numbers.quantized import QuantizedLinear
from ..sources.folder import Source
from ..statistics.layer import LayerStatistics
from ..statistics.stream import Calibration
from .layer import QuantizedLayer, quantize_layer, quantize_walking
from .quantization import Quantization
from .scheme import Computed


class Quantizer:
    """Quantizes the layers of a model.

    Attributes:
        how: what was decided; precision, dtype and wanted are its.
        rotation: of the residual stream, or None.
    """

    def __init__(self, how: Quantization):
        self.how, self.model, self.precision, self.dtype = how, how.model, how.precision, how.dtype
        self.wanted = how.wanted
        self.rotation = None if how.rotation is None else Rotation(how.model.hidden_size, how.rotation)
        # Yarn multiplies cos and sin, hence attention scores twice; where a runtime's tables do not, queries do it.
        self.of_queries = rotary_frequencies(how.model)[1] ** 2 if how.turned_tables else 1.0

    def quantize(
        self,
        index: int,
        layer: Layer,
        statistics: LayerStatistics,
        computed: Computed,
        ready: Mapping[str, QuantizedLinear] | None = None,
    ) -> QuantizedLayer:
        """One layer.

        Args:
            index: its number.
            layer: ``float_layer`` of its tensors; afterwards it computes what the result does.
            statistics: at least what is wanted; the rest is not looked at.
            computed: the weight that the engine will multiply with.
            ready: each linear as someone else quantized it, where it is kept so.
        """
        seen = of_scaled_queries(statistics.only(self.wanted), self.model, self.of_queries)
        schemes, dtype, cache = self.precision.executed(index), getattr(torch, self.dtype), self.precision.kv_cache
        with naming(f"layer {index}"):
            return quantize_layer(layer, seen, schemes, self.how.choices, dtype, computed, cache, ready)

    def quantize_walking(
        self,
        index: int,
        layer: Layer,
        calibration: Calibration,
        computed: Computed,
        on_tokens: Callable[[int], None] = lambda tokens: None,
    ) -> QuantizedLayer:
        """The same, on what its quantized linears compute; calibration tokens are behind the layer afterwards."""
        precision = self.precision
        walk, dtype = calibration.walk(index, layer, on_tokens), getattr(torch, self.dtype)
        with naming(f"layer {index}"):
            return quantize_walking(
                layer, walk, precision.executed(index), self.how.choices, dtype, computed, precision.kv_cache
            )

    def float_layer(self, source: Tensors) -> Layer:
        """A layer before it is quantized, of its Hugging Face tensors, rotated where the model is."""
        return Layer.of(with_scaled_queries(source, self.model, self.of_queries), self.model)

    def rotated(self, tensors: Tensors) -> Tensors:
        """The Hugging Face tensors of one layer, rotated where the model is."""
        return tensors if self.rotation is None else self.rotation.layer(tensors, self.model)

    def embedding(self, source: Source, device: torch.device) -> Embedding:
        """What stands before the first layer, before it is cast; what is rotated, is so on the CPU."""
        if self.rotation is None:
            return source.embedding(device)
        return source.embedding().map(self.rotation.rotate)

    def head(self, source: Source, device: torch.device) -> Head:
        """What stands behind the last layer, before it is cast."""
        head = source.head("cpu" if self.rotation else device)
        if self.rotation is None:
            return head
        norm = head.norm["weight"]
        rotated = self.rotation.rotate(head.weight.float() * norm.float())
        return replace(head, norm={"weight": torch.ones_like(norm)}, weight=rotated)


def of_scaled_queries(statistics: LayerStatistics, model: Model, scaling: float) -> LayerStatistics:
    """What calibration saw of queries, as they are in ``Quantizer.float_layer``."""
    query = model.family.attention[0]
    if scaling == 1:
        return statistics
    own = scaling if model.family.query_key_norms is None else 1  # else the norm behind it is scaled
    outputs = {part: y * (own if part == query else 1) for part, y in statistics.output_amax.items()}
    queries = None if statistics.query_amax is None else statistics.query_amax * scaling
    return replace(statistics, output_amax=outputs, query_amax=queries)
