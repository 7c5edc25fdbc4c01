"""How far the hidden states move where one part of one layer is quantized, and nothing else.

A few calibration tokens go through the layers in floating point, as an engine computes them. Every part that can be
left out of the quantization by itself is quantized alone, the layer is executed again, and the part's error is

    E = mean over tokens of |h' - h|^2 / |h|^2

with h the hidden state of a token behind the layer, and h' the one with that part quantized. A norm reads h before
anything else does and divides by |h|: a token with massive activations (Sun et al. 2024, "Massive Activations in Large
Language Models") counts no more than another, though its error is by far the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ..models.ends import Embedding
from ..models.layer import Tensors
from ..models.rotary import rotary_frequencies
from ..quantize.budget import Part
from ..quantize.layer import QuantizedLayer
from ..quantize.precision import Precision
from ..quantize.quantization import Quantization
from ..quantize.quantizer import Quantizer
from ..sources.folder import Source
from ..sources.readymade.kinds import Inputs
from ..statistics.layer import LayerStatistics
from ..targets.base import Target
from ..targets.huggingface.linear import FolderLinear
from ..targets.trtllm.formats import kind_of
from ..targets.trtllm.formats.base import modules_of
from ..targets.trtllm.target import TensorRTLLM
from .engine_layer import EngineLayer, ExecutedLayer
from .folder import FolderLayer
from .layers import computed
from .runtime import Runtime

# Calibration sequences that are looked at: parts differ by factors, texts by little.
SEQUENCES = 4


def parts_of_model(
    quantizer: Quantizer,
    target: Target,
    source: Source,
    embedding: Embedding,
    ids: torch.Tensor,
    device: torch.device,
    statistics: Callable[[int, Tensors], LayerStatistics],
) -> list[Part]:
    """Every part of a model that is quantized, and its error E.

    Args:
        embedding: the quantizer's.
        ids: the calibration's, int64 [sequences, tokens].
        statistics: of a layer's inputs, by its number and its Hugging Face tensors; asked for in order.
    """
    sensitivity, parts = Sensitivity(quantizer.how, target, embedding, ids[:SEQUENCES], device), list[Part]()
    for index in range(quantizer.model.num_hidden_layers):
        tensors = quantizer.rotated(source.layer(index, device))
        parts += sensitivity.layer(index, tensors, statistics(index, tensors))
    return parts


class Sensitivity:
    """The parts of one layer after the other.

    Args:
        how: the quantization; its schemes decide, its KV cache does not.
        embedding: of the model, or of the rotated one.
        ids: int64 [sequences, tokens].

    Attributes:
        hidden: [sequences, tokens, hidden_size], in the engine's dtype.
    """

    def __init__(
        self, how: Quantization, target: Target, embedding: Embedding, ids: torch.Tensor, device: torch.device
    ):
        # What is rotated comes so from outside.
        self.how, self.target, model = replace(how, rotation=None), target, how.model
        dtype, (frequencies, turned) = getattr(torch, how.dtype), rotary_frequencies(model)
        engine = isinstance(target, TensorRTLLM)
        turned = 1.0 if how.turned_tables else turned
        self.runtime = Runtime(model, dtype, frequencies, ids.shape[1], device, turned, engine)
        self.hidden = target.embedding(embedding).to(device)(ids.to(device))

    def layer(self, index: int, source: Tensors, statistics: LayerStatistics) -> list[Part]:
        """The parts of the next layer that are quantized.

        Args:
            source: its Hugging Face tensors, rotated where the model is.
            statistics: of its inputs.
        """
        family, parts = self.how.model.family, []
        expected = self.behind(index, source, statistics, ())
        energy = expected.float().square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        for groups in parts_of(self.how.precision, index, isinstance(self.target, TensorRTLLM)):
            moved = self.behind(index, source, statistics, groups).float() - expected.float()
            names = [name for group in family.groups if group.name in groups for name in family.parts(group)]
            weights = sum(source[f"{name}.weight"].numel() for name in names)
            parts.append(Part(index, groups, weights, float((moved.square().sum(-1) / energy).mean())))
        self.hidden = expected
        return parts

    def behind(
        self, index: int, source: Tensors, statistics: LayerStatistics, quantized: tuple[str, ...]
    ) -> torch.Tensor:
        """The hidden states behind a layer of which only some groups are quantized."""
        precision = replace(self.how.precision.only(index, quantized), kv_cache=None)
        quantizer, target = Quantizer(replace(self.how, precision=precision)), self.target.having(precision)
        made = quantizer.quantize(index, quantizer.float_layer(source), statistics, target.computed)
        layer = executed(target, index, made, self.runtime.device)
        return torch.cat([computed(self.runtime, index, layer, one) for one in self.hidden.split(1)])


def executed(target: Target, index: int, made: QuantizedLayer, device: torch.device) -> ExecutedLayer:
    """A layer as the target's runtime executes it, before it is written."""
    model, schemes = target.precision.model, target.precision.executed(index)
    if isinstance(target, TensorRTLLM):
        tensors = {name: tensor.to(device) for name, tensor in target.layer(index, made).items()}
        return EngineLayer(model, target.engine, tensors, schemes)
    dtype, linears = getattr(torch, target.dtype), dict[str, FolderLinear]()
    common = {name: tensor.to(device, dtype) for name, tensor in made.common.items()}
    for group in model.family.groups:
        scheme = schemes[group.name]
        for linear in map(model.family.linear, group.linears):
            rows = made.linears[linear.name].to(device).rows(model.out_features(linear.name))
            inputs = Inputs(scheme.activations, scheme.static)
            linears |= {part: FolderLinear(one, inputs) for part, one in zip(linear.parts, rows, strict=True)}
    return FolderLayer(model, dtype, common, linears, None)


def parts_of(precision: Precision, index: int, engine: bool = True) -> Iterator[tuple[str, ...]]:
    """The groups of a layer that may be left in floating point by themselves, or together where a whole attention or
    MLP is quantized or nothing of it, as in engines."""
    groups, schemes, seen = precision.model.family.groups, precision.layer(index), set[str]()
    for group in groups:
        scheme = schemes[group.name]
        if not scheme.quantized or group.name in seen:
            continue
        together = engine and kind_of(scheme).whole_block
        whole = modules_of(group) if together else set[str]()
        part = tuple(other.name for other in groups if other is group or modules_of(other) & whole)
        seen.update(part)
        yield part
