"""Algorithms at work beside each other: quantized layer by layer from shared statistics, and executed at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..errors import naming
from ..models.layer import Tensors
from ..models.rotary import rotary_frequencies
from ..prove.engine_layer import EngineLayer
from ..prove.execution import Execution
from ..prove.runtime import Runtime
from ..quantize.quantizer import Quantizer
from ..sources.folder import Source
from ..sources.text import Tokens
from ..statistics.layer import LayerStatistics
from ..statistics.stream import Calibration, check_range
from ..statistics.wanted import Wanted
from ..targets.trtllm.target import TensorRTLLM
from .progress import OnProgress


@dataclass
class Candidate:
    """An algorithm at work: how it quantizes, and its hidden states on the held-out text.

    Attributes:
        factors: what the inputs of the last layer's groups were divided by, float32 [in], by group name; those that
            were.
    """

    name: str
    quantizer: Quantizer
    target: TensorRTLLM
    execution: Execution
    factors: Tensors = field(default_factory=dict)

    def layer(self, index: int, source: Tensors, statistics: LayerStatistics, reference: torch.Tensor) -> None:
        """Quantize a layer and execute it; reference: the source's hidden states behind it."""
        with naming(self.name):
            layer = self.quantizer.float_layer(source)
            quantized = self.quantizer.quantize(index, layer, statistics, self.target.computed)
            tensors = self.target.layer(index, quantized)
            precision, device = self.quantizer.precision, self.execution.runtime.device
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
            schemes, cache = precision.executed(index), precision.kv_cache
            made = EngineLayer(precision.model, self.target.engine, tensors, schemes, cache)
            self.execution.layer(made, reference)
        self.factors = {name: s for name, s in quantized.layer.factors.items() if not bool((s == 1).all())}


@dataclass
class Stream:
    """Algorithms that read the same residual stream, the model's own or the rotated one, and its statistics."""

    candidates: list[Candidate]
    calibration: Calibration | None

    def layer(self, source: Source, index: int, reference: torch.Tensor, on_progress: OnProgress) -> LayerStatistics:
        """Calibrate, quantize and execute the next layer; returns its statistics."""
        quantizer = self.candidates[0].quantizer
        tensors = quantizer.rotated(source.layer(index, self.candidates[0].execution.runtime.device))
        statistics = LayerStatistics({})
        if self.calibration is not None:
            on_progress(index, "calibrate", 0)
            statistics = self.calibration.layer(index, tensors, lambda tokens: on_progress(index, "calibrate", tokens))
            check_range(statistics.hidden_amax, quantizer.dtype, index)
        on_progress(index, "quantize", 0)
        for candidate in self.candidates:
            candidate.layer(index, tensors, statistics, reference)
        return statistics


def stream_of(
    ways: dict[str, tuple[Quantizer, TensorRTLLM]],
    source: Source,
    tokens: Tokens | None,
    ids: torch.Tensor,
    device: torch.device,
    seed: int,
) -> Stream:
    """The stream that these algorithms share, before the first layer."""
    (first, target), model = next(iter(ways.values())), source.model
    embedding, frequencies = first.embedding(source, device), rotary_frequencies(model)[0]
    stored = target.embedding(embedding)
    wanted = Wanted()
    candidates = []
    for name, (quantizer, target) in ways.items():
        wanted = wanted | quantizer.wanted
        runtime = Runtime(model, target.engine.torch_dtype, frequencies, ids.shape[1], device)
        execution = Execution(runtime, ids, stored, quantizer.rotation)
        candidates.append(Candidate(name, quantizer, target, execution))
    if tokens is None or wanted == Wanted():
        return Stream(candidates, None)
    plain = frozenset.intersection(*(quantizer.how.plain for quantizer, _ in ways.values()))
    return Stream(candidates, Calibration(model, tokens.ids, embedding, wanted, device, seed, plain=plain))
