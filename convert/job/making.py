"""One target's folder while it is made, and the calibration tokens that several of them may share."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, replace
from functools import reduce
from importlib import metadata
from operator import or_
from typing import Any

import torch

from ..files.disk import MANIFEST, Hashes, write_json
from ..files.written import Written
from ..models.ends import Embedding
from ..models.layer import Tensors
from ..numbers.quantized import QuantizedLinear
from ..quantize import half_range
from ..quantize.budget import Spent
from ..quantize.layer import QuantizedLayer
from ..quantize.quantizer import Quantizer
from ..sources.text import Tokens
from ..statistics.file import Save, StatisticsFile
from ..statistics.layer import LayerStatistics
from ..statistics.stream import Calibration, calibration_dtype, check_range
from ..statistics.wanted import Wanted
from ..targets.base import Writer
from .checked import Checked
from .options import BY_RUN
from .progress import OnProgress


class Making:
    """What is made for one target: how its layers are quantized, and where they are written.

    Attributes:
        files: what they are written to; set before the first layer.
        chosen: what was chosen for each layer so far.
        spent: what --float_budget left in floating point; None without it.
    """

    files: Writer

    def __init__(self, found: Checked, tokens: Tokens | None, saved: StatisticsFile | None, device: torch.device):
        self.options, self.source, self.model = found.options, found.source, found.model
        self.ready, self.target, self.precision = found.ready, found.target, found.precision
        self.gathered, self.requantized = found.gathered, found.requantized
        self.device, self.saved = device, saved
        self.tokens = tokens if found.calibrates else None
        self.quantizer = Quantizer(found.how)
        self.chosen: list[dict[str, Any]] = []
        self.spent: Spent | None = None
        if self.ready is not None:
            self.ready_layer(0)  # what the packer did to one layer it did to all

    def ready_layer(self, index: int) -> dict[str, QuantizedLinear] | None:
        """A layer's weights as a ready-made folder holds them."""
        if self.ready is None:
            return None
        return self.source.ready_layer(index, self.precision.base.group_size or 128, getattr(torch, self.target.dtype))

    def leave(self, spent: Spent) -> None:
        """Keep these parts in floating point."""
        self.spent = spent
        self.precision = self.precision.without((part.layer, group) for part in spent.in_float for group in part.groups)
        self.quantizer = Quantizer(replace(self.quantizer.how, precision=self.precision))
        self.target = self.target.having(self.precision)

    def seen(
        self, index: int, tensors: Tensors, calibration: Calibration | None, on_progress: OnProgress
    ) -> LayerStatistics:
        """What is known of a float layer: gathered now, or saved before; nothing where nothing is wanted."""
        if calibration is not None:
            on_progress(index, "calibrate", 0)
            return calibration.layer(index, tensors, lambda done: on_progress(index, "calibrate", done))
        return LayerStatistics({}) if self.saved is None else self.saved.layer(index)

    def embedding(self) -> Embedding:
        """What stands before the first layer, before it is cast."""
        return self.quantizer.embedding(self.source, self.device)

    def layer(
        self, index: int, source: Tensors, statistics: LayerStatistics, last: bool, on_progress: OnProgress
    ) -> None:
        """Quantize and write a layer.

        Args:
            source: its Hugging Face tensors, rotated where the model is.
            last: nobody else wants them.
        """
        check_range(statistics.hidden_amax, self.quantizer.dtype, index)
        ready, layer = self.ready_layer(index), self.quantizer.float_layer(source)
        if last:
            source.clear()  # experts' weights are kept once
        self.write(index, self.quantizer.quantize(index, layer, statistics, self.target.computed, ready), on_progress)

    def walked(self, index: int, source: Tensors, calibration: Calibration, on_progress: OnProgress) -> None:
        """Quantize a layer while tokens pass through it, and write it."""
        on_progress(index, "quantize", 0)
        layer = self.quantizer.float_layer(source)
        source.clear()
        quantized = self.quantizer.quantize_walking(
            index, layer, calibration, self.target.computed, lambda done: on_progress(index, "quantize", done)
        )
        check_range(calibration.largest(), self.quantizer.dtype, index)
        self.write(index, quantized, on_progress)

    def write(self, index: int, quantized: QuantizedLayer, on_progress: OnProgress) -> None:
        on_progress(index, "write", 0)
        self.chosen.append(quantized.chosen)
        self.files.write_layer(index, self.target.layer(index, quantized))

    def write_head(self, calibration: Calibration | None) -> None:
        """What stands behind the last layer."""
        if self.model.family.task is not None:
            self.files.write_encoder_head(self.source.encoder_head(self.device))
            return
        head = self.target.head(self.quantizer.head(self.source, self.device))
        if calibration is not None and self.quantizer.dtype == "float16":
            half_range.check_one("the last norm's output", calibration.largest_normed(head))
            half_range.check_one("a logit", calibration.largest_logit(head, half_range.LARGEST))
        self.files.write_head(head)

    def finish(self, written: Written, hashes: Hashes) -> dict[str, Any]:
        """Write what is read beside the tensors, and enginesmith.json, which is returned."""
        for name, content in self.target.configs().items():
            write_json(written.folder / name, content)
            written.add(written.folder / name)
        kind = f"files of {self.target.name}"
        hashes.add(kind, written.digests())
        manifest = self.manifest() | {"source": hashes.of("source"), "files": hashes.of(kind)}
        write_json(written.folder / MANIFEST, manifest)
        written.add(written.folder / MANIFEST)
        return manifest

    def float16_range_checked(self) -> bool | None:
        """Whether what a layer makes was held against float16's range; None for a target of another dtype."""
        return self.quantizer.wanted != Wanted() if self.quantizer.dtype == "float16" else None

    def manifest(self) -> dict[str, Any]:
        """How it was made, so that the same run can be recognized and repeated."""
        options = {k: v for k, v in asdict(self.options).items() if k not in BY_RUN}
        return {
            "versions": versions(),
            "target": self.target.name,
            "options": options | {"target": self.target.name},
            "calibration": self.calibrated(),
            "quant": self.target.quant(self.precision),
            "float_budget": self.spent and self.spent.described(self.model),
            "repacked_from": self.ready.method if self.ready else None,
            "cache_left_out": bool(self.ready and self.ready.cache) and self.options.kv_cache is None,
            "stripped_prefix": self.source.prefix or None,
            "source_notes": self.source.notes,
            "target_notes": self.target.notes,
            "rotated": self.quantizer.rotation is not None,
            **self.target.recorded,
            "float16_range_checked": self.float16_range_checked(),
            "sliding_window": None if self.model.windows else self.model.sliding_window,
            "attention_windows": list(self.model.windows) or None,
            "layers": self.chosen if any(self.chosen) else [],
        }

    def calibrated(self) -> dict[str, Any] | None:
        """On which text; None where nothing was learned of it."""
        if self.tokens is None or self.quantizer.wanted == Wanted():
            return None
        sequences, length = self.tokens.ids.shape
        return {
            "text": self.tokens.name,
            "sha256": self.tokens.sha256,
            "sequences": sequences,
            "tokens_per_sequence": length,
            "dtype": self.saved.origin.dtype if self.saved else calibration_dtype(self.device),
        }


@dataclass
class Stream:
    """Targets that read the statistics of one forward pass.

    Attributes:
        makings: one of them alone where its later layers see what its quantized ones compute.
        calibration: None where no forward pass is needed.
    """

    makings: list[Making]
    calibration: Calibration | None

    def layer(self, index: int, source: Tensors, save: Save, on_progress: OnProgress) -> None:
        """The next layer of all of them, of its Hugging Face tensors, which are gone afterwards."""
        first = self.makings[0]
        tensors = first.quantizer.rotated(source)
        if tensors is not source:
            source.clear()
        if self.calibration is not None and first.requantized:
            with first.target.advising():
                first.walked(index, tensors, self.calibration, on_progress)
            return
        statistics = first.seen(index, tensors, self.calibration, on_progress)
        save(index, statistics)
        for making in self.makings:
            if making.precision.quantized:
                on_progress(index, "quantize", 0)
            with making.target.advising():
                making.layer(index, tensors, statistics, making is self.makings[-1], on_progress)


def streams_of(makings: list[Making]) -> list[Stream]:
    """The forward passes that some targets need, before the first layer; their embeddings are written."""
    shared: dict[Any, list[Making]] = {}
    for number, making in enumerate(makings):
        key = number if making.requantized and making.saved is None else str(making.quantizer.how.rotation)
        shared.setdefault(key, []).append(making)
    return [stream_of(group) for group in shared.values()]


def stream_of(makings: list[Making]) -> Stream:
    """The forward pass that these share."""
    first = makings[0]
    embedding = first.embedding()
    for making in makings:
        with making.target.advising():
            making.files.write_embedding(embedding)
    tokens = next((making.tokens for making in makings if making.tokens is not None), None)
    if tokens is None or first.saved is not None:
        return Stream(makings, None)
    calibration = Calibration(
        first.model,
        tokens.ids,
        embedding,
        reduce(or_, (making.gathered for making in makings)),
        first.device,
        first.options.seed,
        first.requantized and first.quantizer.how.turned_tables,
        frozenset.intersection(*(making.quantizer.how.plain for making in makings)),
        first.options.calib_all_experts,
    )
    return Stream(makings, calibration)


def versions() -> dict[str, str]:
    """What decides, beside model and options, which bytes a conversion writes."""
    packages = ("enginesmith", "safetensors", "tokenizers", "torch", "transformers")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}
