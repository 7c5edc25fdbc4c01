"""Several quantizations of one model, compared without writing any: one layer of each in memory at a time.

Calibration tokens go through the float model once (once more through the rotated one, where a scheme rotates), every
quantizer reads the same statistics, and what it makes is executed at once beside the float32 source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

from ..device import pick_device
from ..errors import naming
from ..files.disk import ITEM_SIZE
from ..files.tensors import prod
from ..prove.execution import Accuracy, Reference, held_out
from ..prove.verify import figures, finite
from ..quantize.quantizer import Quantizer
from ..sources.folder import Source
from ..statistics.layer import LayerStatistics
from ..targets.trtllm.layout import rank_tensors
from ..targets.trtllm.quant_config import NO_GROUPS
from ..targets.trtllm.ranks import Mapping
from ..targets.trtllm.target import TensorRTLLM
from .algorithms import CheckedComparison
from .calibration import read_calibration
from .candidates import Candidate, Stream, stream_of
from .options import ConvertOptions
from .progress import OnProgress


@dataclass(frozen=True)
class Size:
    """What an algorithm's checkpoint takes.

    Attributes:
        bytes: of all tensors of one rank that holds the whole model.
        bits: per weight of the layers' linears, with scales, zeros and smoothers, without biases.
    """

    bytes: int
    bits: float


@dataclass(frozen=True)
class Outliers:
    """The largest |x| of every channel of one linear input, before and after each algorithm's scaling.

    Attributes:
        layer, group: which input.
        before: [in], of the float model.
        after: [in] of what is quantized, by the name of the algorithm; only of those that scale or rotate.
    """

    layer: int
    group: str
    before: list[float]
    after: dict[str, list[float]]

    @property
    def spread(self) -> float:
        """The widest channel over the median one."""
        return spread(torch.tensor(self.before))


@dataclass(frozen=True)
class Result:
    """One algorithm: its name as it was asked for, size and accuracy."""

    name: str
    size: Size
    accuracy: Accuracy


@dataclass(frozen=True)
class Conditions:
    """What all algorithms have in common.

    Attributes:
        version: of enginesmith.
        dtype: the engine's.
        group_size: where an algorithm has groups, and was not given another.
        kv_cache: its type, or None for the engine's dtype.
        calibration, calibration_tokens: the text's name, and how much of it was read; None and 0 where none was.
        text: the held-out text's name.
    """

    version: str
    dtype: str
    group_size: int
    kv_cache: str | None
    calibration: str | None
    calibration_tokens: int
    text: str


@dataclass(frozen=True)
class Comparison:
    """All algorithms in the order asked for, and the input with the widest outliers (None without calibration)."""

    model: str
    results: list[Result]
    outliers: Outliers | None
    conditions: Conditions


def compare(
    options: ConvertOptions,
    algorithms: list[str],
    text: str = "pydoc-heldout",
    chunks: int = 20,
    length: int = 512,
    on_progress: OnProgress = lambda layer, phase, tokens: None,
) -> Comparison:
    """Quantize and execute a model with every algorithm.

    Args:
        options: as for a conversion; quant, output_dir and the files of statistics do not count.
        algorithms: TensorRT-LLM's QuantAlgo names, or "none" for 16-bit weights; each may have settings of its own
            behind it: "W4A16_AWQ:rounding=gptq", "W4A16_GPTQ:symmetric:group_size=64".
        text, chunks, length: what to measure on, as for ``verify.measure``.

    Raises:
        InputError: anything that a conversion or a verification would refuse.
    """
    return compare_checked(CheckedComparison(options, algorithms, text, chunks, length), on_progress)


@torch.inference_mode()
def compare_checked(checked: CheckedComparison, on_progress: OnProgress) -> Comparison:
    """Quantize and execute a model with every algorithm of a checked comparison."""
    options, source, device = checked.options, checked.source, pick_device(checked.options.device)
    ways = {name: (Quantizer(how), target) for name, (how, target) in checked.ways.items()}
    ids = held_out(source, checked.text, checked.chunks, checked.length)
    tokens = read_calibration(options, source) if checked.calibrates else None
    reference = Reference(source, ids, device)
    streams = [
        stream_of(group, source, tokens, ids, device, options.seed)
        for group in (
            {name: way for name, way in ways.items() if (way[0].rotation is None) == plain} for plain in (True, False)
        )
        if group
    ]
    outliers: Outliers | None = None
    for index in range(source.model.num_hidden_layers):
        on_progress(index, "source", 0)
        reference.layer(index, source.layer(index, device))
        statistics = [stream.layer(source, index, reference.hidden, on_progress) for stream in streams]
        outliers = wider(outliers, index, streams, statistics)
    on_progress(source.model.num_hidden_layers, "logits", 0)
    done = {c.name: finished(c, source, reference) for stream in streams for c in stream.candidates}
    conditions = Conditions(
        metadata.version("enginesmith"),
        next(iter(checked.ways.values()))[0].dtype,
        options.group_size or NO_GROUPS,
        options.kv_cache,
        tokens.name if tokens else None,
        tokens.ids.numel() if tokens else 0,
        checked.text,
    )
    return Comparison(str(source.folder), [done[name] for name in checked.ways], outliers, conditions)


def wider(
    so_far: Outliers | None, index: int, streams: list[Stream], statistics: list[LayerStatistics]
) -> Outliers | None:
    """The input with the widest outliers, among those of this layer and the one found before."""
    inputs = {name: of.channel_amax() for name, of in statistics[0].inputs.items()}
    if not inputs:
        return so_far
    group = max(inputs, key=lambda name: spread(inputs[name]))
    if so_far is not None and so_far.spread >= spread(inputs[group]):
        return so_far
    after = {}
    for stream, of in zip(streams, statistics, strict=True):
        for candidate in stream.candidates:
            if group in of.inputs and (group in candidate.factors or candidate.quantizer.rotation is not None):
                amax = of.inputs[group].channel_amax() / candidate.factors.get(group, 1.0)
                after[candidate.name] = amax.tolist()
    return Outliers(index, group, inputs[group].tolist(), after)


def spread(amax: torch.Tensor) -> float:
    """The largest of the channels' ranges [in] over the median one; 0 where all are 0."""
    largest, middle = float(amax.max()), float(amax.median())
    if middle > 0:
        return largest / middle
    return math.inf if largest > 0 else 0.0


def finished(candidate: Candidate, source: Source, reference: Reference) -> Result:
    """Behind the last layer: an algorithm's size and accuracy."""
    with naming(candidate.name):
        head = candidate.quantizer.head(source, candidate.execution.runtime.device)
        accuracy = candidate.execution.accuracy(reference, candidate.target.head(head))
    return Result(candidate.name, size_of(candidate.target), accuracy)


def size_of(target: TensorRTLLM) -> Size:
    """What the checkpoint takes on one rank."""
    model = target.precision.model
    tensors = rank_tensors(target.precision, Mapping(), 0, target.engine)
    sizes = {name: prod(shape) * ITEM_SIZE[dtype] for name, (shape, dtype) in tensors.items()}
    names = {f".{linear.stacked or linear.name}." for linear in model.family.linears}
    own = [size for name, size in sizes.items() if any(n in name for n in names) and not name.endswith(".bias")]
    weights = sum(
        sum(model.out_features(linear.name)) * model.dimension(linear.in_features) for linear in model.family.linears
    )
    return Size(sum(sizes.values()), 8 * sum(own) / (weights * model.num_hidden_layers))


def summary(comparison: Comparison) -> dict[str, Any]:
    """The comparison as one JSON object."""
    return {
        "model": comparison.model,
        "algorithms": [
            {"quant": result.name, "bytes": result.size.bytes, "bits_per_weight": finite(result.size.bits)}
            | figures(result.accuracy)
            for result in comparison.results
        ],
    }
