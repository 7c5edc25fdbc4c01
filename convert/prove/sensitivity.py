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
from ..quantize.precision import Precision
from ..quantize.quantization import Quantization
from ..quantize.quantizer import Quantizer
from ..sources.folder import Source
from ..statistics.layer import LayerStatistics
from ..targets.trtllm.formats import kind_of
from ..targets.trtllm.formats.base import modules_of
from ..targets.trtllm.target import Target
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
        tensors = quantizer.source_layer(source, index, device)
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
        self.how, self.engine, model = replace(how, rotation=None), target.engine, how.model
        self.runtime = Runtime(model, self.engine, rotary_frequencies(model)[0], ids.shape[1], device)
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
        for groups in parts_of(self.how.precision, index):
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
        quantizer, target = Quantizer(replace(self.how, precision=precision)), Target(precision, self.engine)
        made = quantizer.quantize(index, quantizer.float_layer(source), statistics, target.computed)
        tensors = {name: tensor.to(self.runtime.device) for name, tensor in target.layer(index, made).items()}
        schemes, sequences = precision.executed(index), self.hidden.split(1)
        return torch.cat([self.runtime.layer(index, tensors, schemes, one) for one in sequences])


def parts_of(precision: Precision, index: int) -> Iterator[tuple[str, ...]]:
    """The groups of a layer that may be left in floating point by themselves, or together where a whole attention or
    MLP is quantized or nothing of it."""
    groups, schemes, seen = precision.model.family.groups, precision.layer(index), set[str]()
    for group in groups:
        scheme = schemes[group.name]
        if not scheme.quantized or group.name in seen:
            continue
        whole = modules_of(group) if kind_of(scheme).whole_block else set[str]()
        part = tuple(other.name for other in groups if other is group or modules_of(other) & whole)
        seen.update(part)
        yield part
