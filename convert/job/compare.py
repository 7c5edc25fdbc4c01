"""Several quantizations of one model, compared without writing any: one layer of each in memory at a time.

Calibration tokens go through the float model once (once more through the rotated one, where a scheme rotates), every
quantizer reads the same statistics, and what it makes is executed at once beside the float32 source.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import torch

from ..device import pick_device
from ..errors import InputError
from ..files.disk import ITEM_SIZE
from ..files.tensors import prod
from ..prove.execution import Accuracy, Reference, held_out
from ..prove.verify import figures, finite
from ..quantize.quantizer import Quantizer
from ..sources.folder import Source
from ..statistics.layer import LayerStatistics, Wanted
from ..targets.trtllm.formats.base import Engine
from ..targets.trtllm.layout import rank_tensors
from ..targets.trtllm.quant_config import NO_GROUPS
from ..targets.trtllm.ranks import Mapping
from ..targets.trtllm.target import Target
from .candidates import Candidate, OnProgress, Stream, naming, stream_of
from .options import ConvertOptions, check_options, quantizer_of, read_calibration

NONE = "none"
# What may follow an algorithm's name after a colon, as NAME=VALUE, and how the value is read; and what stands alone.
SETTINGS: dict[str, Callable[[str], Any]] = {"rounding": str, "group_size": int, "alpha": float, "act_range": str}
SWITCHES = ("symmetric",)


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


@torch.inference_mode()
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
    check_names(algorithms)
    check_options(options)
    source, device = Source(options.model_dir), pick_device(options.device)
    check_float(source)
    ways = {name: of_algorithm(name, options, source) for name in algorithms}
    quantizers = {name: quantizer for name, (quantizer, _) in ways.items()}
    ids = held_out(source, text, chunks, length)
    wanted = any(quantizer.wanted != Wanted() for quantizer in quantizers.values())
    tokens = read_calibration(options, source) if wanted else None
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
        reference.layer(source.layer(index, device))
        statistics = [stream.layer(source, index, reference.hidden, on_progress) for stream in streams]
        outliers = wider(outliers, index, streams, statistics)
    on_progress(source.model.num_hidden_layers, "logits", 0)
    done = {c.name: finished(c, source, reference) for stream in streams for c in stream.candidates}
    conditions = Conditions(
        metadata.version("enginesmith"),
        quantizers[algorithms[0]].dtype,
        options.group_size or NO_GROUPS,
        options.kv_cache,
        tokens.name if tokens else None,
        tokens.ids.numel() if tokens else 0,
        text,
    )
    return Comparison(str(source.folder), [done[name] for name in algorithms], outliers, conditions)


def check_names(algorithms: list[str]) -> None:
    """Raise InputError unless there are algorithms, each of them once."""
    if not algorithms or not all(algorithms):
        raise InputError("--quant: give algorithms separated by commas, such as W8A16,W4A16_AWQ")
    twice = next((name for name in algorithms if algorithms.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--quant: {twice} is named twice")


def check_float(source: Source) -> None:
    """Raise InputError for a folder that is quantized already."""
    if source.ready is not None:
        raise InputError(
            f"--model_dir: {source.folder} is quantized already ({source.ready.method}); a comparison needs "
            "floating-point weights: convert the folder, and measure with enginesmith verify --reference"
        )


def of_algorithm(name: str, options: ConvertOptions, source: Source) -> tuple[Quantizer, Target]:
    """How one algorithm quantizes, and for what, its settings and kernels checked."""
    with naming(name):
        own = replace(options, **settings_of(name))
        own = replace(own, quant=None, exclude=()) if own.quant == NONE else own
        check_options(own)
        quantizer = quantizer_of(own, source)
        target = Target(quantizer.precision, Engine(quantizer.dtype, own.sm))
        target.check(Mapping())
    return quantizer, target


def settings_of(name: str) -> dict[str, Any]:
    """The options in an algorithm's name: W4A16_AWQ:rounding=gptq:group_size=64."""
    quant, *words = name.split(":")
    options: dict[str, Any] = {"quant": quant}
    for word in words:
        key, _, value = word.partition("=")
        try:
            options[key] = True if word in SWITCHES else SETTINGS[key](value)
        except (KeyError, ValueError):
            takes = [*(f"{setting}=..." for setting in SETTINGS), *SWITCHES]
            raise InputError(f"{word!r} is no setting of an algorithm here; these are: {', '.join(takes)}") from None
    return options


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
        accuracy = candidate.execution.accuracy(reference, *candidate.target.head(*candidate.quantizer.head(source)))
    return Result(candidate.name, size_of(candidate.target), accuracy)


def size_of(target: Target) -> Size:
    """What the checkpoint takes on one rank."""
    model = target.precision.model
    tensors = rank_tensors(target.precision, Mapping(), 0, target.engine)
    sizes = {name: prod(shape) * ITEM_SIZE[dtype] for name, (shape, dtype) in tensors.items()}
    names = {f".{linear.name}." for linear in model.family.linears}
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
