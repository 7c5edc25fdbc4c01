"""The whole conversion: one decoder layer in memory at a time, from mapped shards to files filled in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..device import pick_device
from ..files.disk import Hashes
from ..files.staging import Partial, Staging
from ..files.written import Written, plain_disk_errors
from ..sources.text import Tokens
from ..statistics.file import Origin, Save, StatisticsFile, saving
from ..statistics.stream import calibration_dtype
from ..statistics.wanted import Wanted
from ..targets.registry import files_of
from .budget import spend
from .calibration import read_calibration
from .checked import Checked, checked
from .making import Making, streams_of
from .options import ConvertOptions
from .progress import OnProgress


@dataclass(frozen=True)
class Converted:
    """What a conversion made.

    Attributes:
        folder: what --output_dir named.
        manifest: the content of its enginesmith.json; of several targets, the first one's.
        targets: what was made for each, where there are several.
    """

    folder: Path
    manifest: dict[str, Any]
    targets: tuple[Converted, ...] = ()


def convert(options: ConvertOptions, on_progress: OnProgress = lambda layer, phase, tokens: None) -> Converted:
    """Convert a Hugging Face folder into a quantized folder for each target.

    Everything that can be refused is refused before any work; the output folder appears when complete.

    Raises:
        InputError: any input that cannot be converted, or a disk that cannot hold the result.
    """
    return convert_job(Job(options, checked(options)), on_progress)


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
        folders = [staging.folder / name for name in options.target] if len(job.makings) > 1 else [staging.folder]
        for one in folders:
            one.mkdir(exist_ok=True)
        written = [Written(one) for one in folders]
        if options.float_budget is not None:
            making, place_of = job.makings[0], staging.hidden / "statistics"
            spend(making, options.float_budget, place_of, job.origin(hashes.of("source"), making), on_progress)
        with job.statistics(hashes, place) as save:
            job.run(written, save, on_progress)
        on_progress(job.model.num_hidden_layers, "hash", 0)
        manifests = [making.finish(own, hashes) for making, own in zip(job.makings, written, strict=True)]
        job.source.check_unchanged()
        for own in written:
            own.check()
        if place is not None:
            place.commit()
        staging.commit()
    final = Path(options.output_dir)
    each = tuple(
        Converted(final / making.options.target[0], manifest)
        for making, manifest in zip(job.makings, manifests, strict=True)
    )
    return Converted(final, manifests[0], each if len(each) > 1 else ())


class Job:
    """A conversion that nothing refuses any more: one pass over the model, and what is made for each target of it."""

    def __init__(self, options: ConvertOptions, found: list[Checked]):
        first = found[0]
        self.options, self.source, self.model = options, first.source, first.model
        self.device = pick_device(options.device)
        calibrates = any(one.calibrates for one in found)
        self.tokens: Tokens | None = read_calibration(options, self.source) if calibrates else None
        self.saved = StatisticsFile(options.stats, self.model, self.device) if options.stats else None
        self.makings = [Making(one, self.tokens, self.saved, self.device) for one in found]

    def origin(self, source: dict[str, str], making: Making) -> Origin:
        """What a target wants gathered, and from what; source: SHA-256 of the model's files."""
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
            making.quantizer.rotation is not None,
            Wanted().lacks(making.gathered),
        )

    @contextmanager
    def statistics(self, hashes: Hashes, place: Partial | None) -> Iterator[Save]:
        """Check the statistics that were given, or store those that are gathered."""
        for making in self.makings:
            if self.saved is not None:
                self.saved.check(self.origin(hashes.of("source"), making))
        if place is None:
            yield lambda index, statistics: None
            return
        with saving(place.content, place.flag, self.model, self.origin(hashes.of("source"), self.makings[0])) as save:
            yield save

    def run(self, written: list[Written], save: Save, on_progress: OnProgress) -> None:
        """Write every target's files."""
        with ExitStack() as opened:
            for making, own in zip(self.makings, written, strict=True):
                making.files = opened.enter_context(files_of(making.target, own.folder))
            on_progress(-1, "embedding", 0)
            streams = streams_of(self.makings)
            for index in range(self.model.num_hidden_layers):
                on_progress(index, "read", 0)
                source = self.source.layer(index, self.device)
                for stream in streams:
                    stream.layer(index, source if stream is streams[-1] else dict(source), save, on_progress)
            on_progress(self.model.num_hidden_layers, "head", 0)
            for stream in streams:
                for making in stream.makings:
                    with making.target.advising():
                        making.write_head(stream.calibration)
            for making, own in zip(self.makings, written, strict=True):
                making.files.finish(own)
