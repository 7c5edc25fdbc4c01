"""The whole conversion: one decoder layer in memory at a time, from mapped shards to files filled in place."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..device import pick_device
from ..files.disk import MANIFEST, Hashes, write_json
from ..files.staging import Partial, Staging
from ..files.written import Written, plain_disk_errors
from ..models.ends import Embedding
from ..models.layer import Layer, Tensors
from ..numbers.quantized import QuantizedLinear
from ..prove.sensitivity import parts_of_model
from ..quantize import half_range
from ..quantize.budget import Spent
from ..quantize.layer import QuantizedLayer
from ..quantize.quantizer import Quantizer
from ..sources.text import Tokens
from ..statistics.file import Origin, Save, StatisticsFile, saving
from ..statistics.layer import LayerStatistics
from ..statistics.stream import Calibration, calibration_dtype, check_range
from ..statistics.wanted import Wanted
from ..targets.trtllm.config import checkpoint_config
from ..targets.trtllm.manifest import QUANT_CFG
from ..targets.trtllm.mixture import packed_for_sm, quant_algo
from ..targets.trtllm.quant_config import quant_cfg
from ..targets.trtllm.target import Target
from ..targets.trtllm.writer import RankFiles
from .calibration import read_calibration
from .checked import Checked, checked
from .options import BY_RUN, ConvertOptions

# (layer, phase, tokens done in that layer)
OnProgress = Callable[[int, str, int], None]


@dataclass(frozen=True)
class Converted:
    """What a conversion made.

    Attributes:
        folder: the checkpoint.
        manifest: the content of its enginesmith.json.
    """

    folder: Path
    manifest: dict[str, Any]


def convert(options: ConvertOptions, on_progress: OnProgress = lambda layer, phase, tokens: None) -> Converted:
    """Convert a Hugging Face folder into a TensorRT-LLM checkpoint folder.

    Everything that can be refused is refused before any work; the output folder appears when complete.

    Raises:
        InputError: any input that cannot be converted, or a disk that cannot hold the result.
    """
    return convert_job(Job(checked(options)), on_progress)


def convert_job(job: Job, on_progress: OnProgress) -> Converted:
    """Do what was checked; the folder, and the file of statistics if one is asked for, get their names together."""
    options = job.options
    folder, saved = Staging(options.output_dir), options.save_stats
    with (
        Partial(saved, "--save_stats") if saved else nullcontext() as place,
        folder as staging,
        Hashes() as hashes,
        torch.inference_mode(),
        plain_disk_errors(options.output_dir),
    ):
        hashes.add("source", job.source.digests())
        if options.float_budget is not None:
            job.spend(options.float_budget, staging.hidden / "statistics", hashes.of("source"), on_progress)
        written = Written(staging.folder)
        with job.statistics(hashes, place) as save:
            layers = job.run(written, save, on_progress)
        on_progress(job.model.num_hidden_layers, "hash", 0)
        for name, content in job.configs().items():
            write_json(staging.folder / name, content)
            written.add(staging.folder / name)
        hashes.add("files", written.digests())
        manifest = job.manifest(layers) | hashes.wait()
        write_json(staging.folder / MANIFEST, manifest)
        written.add(staging.folder / MANIFEST)
        job.source.check_unchanged()
        written.check()
        if place is not None:
            place.commit()
        staging.commit()
    return Converted(Path(options.output_dir), manifest)


class Job:
    """A conversion that nothing refuses any more: what was checked, the quantizer, and the calibration tokens.

    Attributes:
        spent: what --float_budget left in floating point; None without it.
    """

    def __init__(self, checked: Checked):
        self.options, self.source, self.model = checked.options, checked.source, checked.model
        self.mapping, self.ready, self.target = checked.mapping, checked.ready, checked.target
        self.precision, self.gathered, self.requantized = checked.precision, checked.gathered, checked.requantized
        self.device = pick_device(self.options.device)
        self.quantizer = Quantizer(checked.how)
        if self.ready is not None:
            self.ready_layer(0)  # what the packer did to one layer it did to all
        self.tokens: Tokens | None = read_calibration(self.options, self.source) if checked.calibrates else None
        stats = self.options.stats
        self.saved = StatisticsFile(stats, self.model, self.device) if stats else None
        self.spent: Spent | None = None

    def spend(self, percent: float, path: Path, source: dict[str, str], on_progress: OnProgress) -> None:
        """Leave the parts in floating point that a budget is best spent on; statistics stay in a file for ``run``.

        Args:
            path: of that file; none is made where there is one, or where layers are quantized on the way.
            source: SHA-256 of the model's files.
        """
        assert self.tokens is not None
        embedding, keeps = self.quantizer.embedding(self.source, self.device), not (self.saved or self.requantized)
        calibration = self.calibration(embedding, walks=False)
        with saving(path, "--float_budget", self.model, self.origin(source)) if keeps else nullcontext() as save:

            def statistics(index: int, tensors: Tensors) -> LayerStatistics:
                seen = self.layer_statistics(index, tensors, calibration, on_progress)
                if save is not None:
                    save(index, seen)
                on_progress(index, "measure", 0)
                return seen

            parts = parts_of_model(
                self.quantizer, self.target, self.source, embedding, self.tokens.ids, self.device, statistics
            )
        if keeps:
            self.saved = StatisticsFile(path, self.model, self.device)
        self.spent = Spent.on(parts, percent)
        self.precision = self.precision.without((p.layer, group) for p in self.spent.in_float for group in p.groups)
        self.quantizer = Quantizer(replace(self.quantizer.how, precision=self.precision))
        self.target = Target(self.precision, self.target.engine)

    def ready_layer(self, index: int) -> dict[str, QuantizedLinear] | None:
        """A layer's weights as a ready-made folder holds them."""
        if self.ready is None:
            return None
        size = self.precision.base.group_size
        assert size is not None
        return self.source.ready_layer(index, size, self.target.engine.torch_dtype)

    def origin(self, source: dict[str, str]) -> Origin:
        """What this conversion gathers, and from what; source: SHA-256 of the model's files."""
        assert self.tokens is not None
        sequences, length = self.tokens.ids.shape
        return Origin(
            source,
            self.tokens.name,
            self.tokens.sha256,
            sequences,
            length,
            self.options.seed,
            calibration_dtype(self.device),
            self.quantizer.rotation is not None,
            Wanted().lacks(self.gathered),
        )

    @contextmanager
    def statistics(self, hashes: Hashes, place: Partial | None) -> Iterator[Save]:
        """Check the statistics that were given, or store those that are gathered."""
        if self.saved is not None:
            self.saved.check(self.origin(hashes.of("source")))
        if place is None:
            yield lambda index, statistics: None
            return
        with saving(place.content, place.flag, self.model, self.origin(hashes.of("source"))) as save:
            yield save

    def run(self, written: Written, save: Save, on_progress: OnProgress) -> list[dict[str, Any]]:
        """Write every rank's file; returns what was chosen for each layer."""
        report = []
        with RankFiles.made(written.folder, self.target, self.mapping) as files:
            on_progress(-1, "embedding", 0)
            files.write_rotary_tables()
            embedding = self.quantizer.embedding(self.source, self.device)
            files.write_embedding(embedding)
            calibration = self.calibration(embedding, self.requantized)
            del embedding
            for index in range(self.model.num_hidden_layers):
                tensors, chosen = self.layer(index, calibration, save, on_progress)
                report.append(chosen)
                on_progress(index, "write", 0)
                files.write_layer(index, tensors)
                del tensors
            on_progress(self.model.num_hidden_layers, "head", 0)
            self.write_head(files, calibration)
            files.finish(written)
        return report

    def write_head(self, files: RankFiles, calibration: Calibration | None) -> None:
        """What stands behind the last layer."""
        if self.model.family.task is not None:
            files.write_encoder_head(self.source.encoder_head(self.device))
            return
        head = self.target.head(self.quantizer.head(self.source, self.device))
        if calibration is not None and self.quantizer.dtype == "float16":
            half_range.check_one("the last norm's output", calibration.largest_normed(head))
            half_range.check_one("a logit", calibration.largest_logit(head, half_range.LARGEST))
        files.write_head(head)

    def calibration(self, embedding: Embedding, walks: bool) -> Calibration | None:
        """The calibration tokens before the first layer; None where no forward pass is needed.

        Args:
            walks: layers are quantized on the way.
        """
        if self.tokens is None or self.saved is not None:
            return None
        return Calibration(
            self.model,
            self.tokens.ids,
            embedding,
            self.gathered,
            self.device,
            self.options.seed,
            walks,
            self.quantizer.how.plain,
            self.options.calib_all_experts,
        )

    def layer(
        self, index: int, calibration: Calibration | None, save: Save, on_progress: OnProgress
    ) -> tuple[Tensors, dict[str, Any]]:
        """One layer's whole tensors, and what was chosen for it."""
        on_progress(index, "read", 0)
        source = self.quantizer.source_layer(self.source, index, self.device)
        if calibration is not None and self.requantized:
            layer = self.quantizer.float_layer(source)
            del source  # experts' weights are kept once
            quantized = self.walked(index, layer, calibration, on_progress)
        else:
            statistics = self.layer_statistics(index, source, calibration, on_progress)
            save(index, statistics)
            if self.precision.quantized:
                on_progress(index, "quantize", 0)
            ready, layer = self.ready_layer(index), self.quantizer.float_layer(source)
            del source
            quantized = self.quantizer.quantize(index, layer, statistics, self.target.computed, ready)
        return self.target.layer(index, quantized), quantized.chosen

    def layer_statistics(
        self, index: int, source: Tensors, calibration: Calibration | None, on_progress: OnProgress
    ) -> LayerStatistics:
        """What is known of a float layer: gathered now, or saved before; nothing where nothing is wanted."""
        statistics = LayerStatistics({})
        if calibration is not None:
            on_progress(index, "calibrate", 0)
            statistics = calibration.layer(index, source, lambda tokens: on_progress(index, "calibrate", tokens))
        elif self.saved is not None:
            statistics = self.saved.layer(index)
        check_range(statistics.hidden_amax, self.quantizer.dtype, index)
        return statistics

    def walked(self, index: int, layer: Layer, calibration: Calibration, on_progress: OnProgress) -> QuantizedLayer:
        """A layer quantized while tokens pass through it."""
        on_progress(index, "quantize", 0)
        quantized = self.quantizer.quantize_walking(
            index, layer, calibration, self.target.computed, lambda tokens: on_progress(index, "quantize", tokens)
        )
        check_range(calibration.largest(), self.quantizer.dtype, index)
        return quantized

    def float16_range_checked(self) -> bool | None:
        """Whether what a layer makes was held against float16's range; None for an engine of another dtype."""
        return self.quantizer.wanted != Wanted() if self.quantizer.dtype == "float16" else None

    def configs(self) -> dict[str, dict[str, Any]]:
        """What TensorRT-LLM reads beside the tensors, by name of the file."""
        alpha = 0.5 if self.options.alpha is None else self.options.alpha
        config = checkpoint_config(self.precision, self.mapping, self.quantizer.dtype, alpha)
        layers = quant_cfg(self.precision, self.mapping.stages(self.model.num_hidden_layers)[0])
        return {"config.json": config} | ({} if layers is None else {QUANT_CFG: layers})

    def manifest(self, layers: list[dict[str, Any]]) -> dict[str, Any]:
        """How it was made, so that the same run can be recognized and repeated."""
        options = {k: v for k, v in asdict(self.options).items() if k not in BY_RUN}
        calibration = None
        if self.tokens is not None and self.quantizer.wanted != Wanted():
            sequences, length = self.tokens.ids.shape
            dtype = self.saved.origin.dtype if self.saved else calibration_dtype(self.device)
            calibration = {
                "text": self.tokens.name,
                "sha256": self.tokens.sha256,
                "sequences": sequences,
                "tokens_per_sequence": length,
                "dtype": dtype,
            }
        return {
            "versions": versions(),
            "options": options,
            "calibration": calibration,
            "quant": quant_algo(self.precision),
            "float_budget": self.spent and self.spent.described(self.model),
            "repacked_from": self.ready.method if self.ready else None,
            "stripped_prefix": self.source.prefix or None,
            "source_notes": self.source.notes,
            "rotated": self.quantizer.rotation is not None,
            "packed_for_sm": packed_for_sm(self.precision, self.target.engine),
            "float16_range_checked": self.float16_range_checked(),
            "sliding_window": None if self.model.windows else self.model.sliding_window,
            "attention_windows": list(self.model.windows) or None,
            "layers": layers if any(layers) else [],
        }


def versions() -> dict[str, str]:
    """What decides, beside model and options, which bytes a conversion writes."""
    packages = ("enginesmith", "safetensors", "tokenizers", "torch", "transformers")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}
