"""A conversion before any work: whatever can be refused without a number of a tensor, or a text, is refused here."""

from __future__ import annotations

import os
from pathlib import Path

from ..device import check_device
from ..errors import InputError
from ..files.apart import check_apart
from ..files.staging import Partial, Staging
from ..sources.folder import Source
from ..sources.readymade.kinds import ANEW, ReadyMade
from ..statistics.wanted import EVERYTHING, Wanted
from ..targets.base import Target
from ..targets.registry import TARGETS
from .calibration import check_calibration
from .options import ConvertOptions, check_options, of_kind, settled
from .quantization import quantization_of


class Checked:
    """A conversion into one target's folder that may begin.

    Args:
        source: what is converted, where somebody has opened it.

    Attributes:
        source, model: what is converted; ready: how its linears are quantized already, where they are kept so.
        how: what they become; precision, target: in which formats.
        calibrates: whether a text is read; gathered: what is learned of it.
        requantized: later layers see what the quantized ones before them compute.

    Raises:
        InputError: options, a folder or a mapping that no conversion can have.
    """

    def __init__(self, options: ConvertOptions, source: Source | None = None):
        check_options(options)
        self.options = options = settled(options)
        check_device(options.device)
        self.kind = TARGETS[options.target[0]]
        self.source = source or Source(options.model_dir)
        self.model = self.source.model
        self.check_experts()
        self.check_target()
        self.ready: ReadyMade | None = None if options.requantize else self.source.ready
        self.how = quantization_of(options, self.source, self.kind)
        self.precision = self.how.precision
        if options.kv_cache and not self.precision.quantized and not self.kind.turned_tables:
            raise InputError(f"--kv_cache: {self.kind.title} reads its scales beside quantized weights; give --quant")
        self.target: Target = self.kind.of(self.how, options.wishes, self.source)
        if self.ready is not None:
            self.check_kept()
        if self.source.ready is not None and source is None:
            self.source.check_ready_made()
        self.gathered = EVERYTHING if options.save_stats else self.how.wanted
        if options.float_budget is not None:
            self.check_budget()
        reads = options.stats or options.save_stats or options.float_budget
        self.calibrates = bool(reads) or self.how.wanted != Wanted()
        self.requantized = self.propagates_quantized()
        check_calibration(options, self.model if self.calibrates else None)
        if options.stats and not Path(options.stats).is_file():
            raise InputError(f"--stats: {options.stats} is no file; make it with enginesmith convert --save_stats")
        check_apart(options.reads(), options.writes())
        if options.save_stats:
            check_new(Path(options.save_stats))

    def check_target(self) -> None:
        """Raise InputError for what is asked of a target whose runtime has no such thing."""
        options = self.options
        for name in [name for name, default in of_kind(not self.kind.cuts) if getattr(options, name) != default]:
            whose = [kind.name for kind in TARGETS.values() if kind.cuts != self.kind.cuts]
            raise InputError(f"--{name} is for --target {' or '.join(whose)}, not {self.kind.name}; leave it away")
        if options.rotate and not self.kind.turned_tables:
            raise InputError(f"--rotate is for --target trtllm, not {self.kind.name}; leave it away")
        if not options.fold and not self.kind.turned_tables:
            raise InputError(f"--no_fold is for --target trtllm, not {self.kind.name}; leave it away")
        if options.kv_cache not in (None, *self.kind.caches):
            works = " or ".join(self.kind.caches)
            raise InputError(
                f"--kv_cache {options.kv_cache}: {self.kind.title} has none; use {works}, or leave it away"
            )

    def check_experts(self) -> None:
        """Raise InputError for what is asked of experts, where there are none, or that no ranks can have."""
        options, ep = self.options, self.options.moe_ep_size
        asked = {
            "--moe_tp_size": options.moe_tp_size is not None,
            "--moe_ep_size": ep > 1,
            "--calib_all_experts": options.calib_all_experts,
        }
        for flag in [flag for flag, there in asked.items() if there and not self.model.num_experts]:
            raise InputError(f"{flag}: {self.model.architecture} has no experts; leave it away")
        if options.moe_tp_size is not None and options.moe_tp_size * ep != options.tp_size:
            raise InputError(
                f"--moe_tp_size {options.moe_tp_size} times --moe_ep_size {ep} must be --tp_size {options.tp_size}"
            )
        if self.model.num_experts and (options.stats or options.save_stats):
            flag = "--stats" if options.stats else "--save_stats"
            raise InputError(f"{flag}: statistics of experts are not kept in a file; leave it away")

    def check_kept(self) -> None:
        """Raise InputError for what would change a ready-made folder's weights."""
        options = self.options
        if self.model.num_experts:
            raise InputError(f"experts that are quantized already are not kept as they are; {ANEW}")
        changes = {
            "--rotate": bool(options.rotate),
            "--symmetric": options.symmetric,
            "--exclude": bool(options.exclude),
            "--quant_layer": bool(options.quant_layer),
            "--float_budget": options.float_budget is not None,
            "--stats and --save_stats": bool(options.stats or options.save_stats),
            f"--rounding {options.rounding}": options.rounding != "auto",
            f"--propagate {options.propagate}": options.propagate != "auto",
        }
        for flag in [flag for flag, there in changes.items() if there]:
            raise InputError(f"{flag}: a folder that is quantized already keeps its integers; leave it away, or {ANEW}")
        if self.model.attention_scaling != 1:
            raise InputError(f"config.json: yarn's attention factor would go into the scales of queries; {ANEW}")

    def check_budget(self) -> None:
        """Raise InputError where --float_budget leaves nothing to choose."""
        reasons = {
            "nothing is quantized; give --quant": not self.precision.quantized,
            "experts cannot be left in floating point; leave it away": bool(self.model.num_experts),
            "with --save_stats nothing is chosen yet; save the statistics without it, then give --stats": bool(
                self.options.save_stats
            ),
            "stages of a pipeline are quantized alike; use --pp_size 1, or --exclude": self.options.pp_size > 1,
        }
        for reason in [reason for reason, there in reasons.items() if there]:
            raise InputError(f"--float_budget: {reason}")
        try:
            self.kind.check_precision(self.precision.without((0, group.name) for group in self.model.family.groups))
        except InputError as error:
            raise InputError(f"--float_budget: {error}") from None

    def propagates_quantized(self) -> bool:
        """Whether later layers see what the quantized ones before them compute."""
        asked, schemes = self.options.propagate, self.precision.quantized
        possible = bool(schemes) and all(scheme.weight_only for scheme in schemes)
        if asked == "quantized" and not possible:
            raise InputError(f"--propagate quantized is for weight-only schemes, not {self.kind.quant(self.precision)}")
        gptq = any(self.how.choices.gptq(scheme) for scheme in schemes)
        return possible and self.calibrates and (asked == "quantized" or (asked == "auto" and gptq))


def checked(options: ConvertOptions) -> list[Checked]:
    """The conversion into each target's folder; all of them are new."""
    if not options.output_dir:
        raise InputError("--output_dir is empty; give the folder to make")
    each = options.each()
    if len(each) > 1 and options.save_stats:
        raise InputError("--save_stats: give one --target; others can read the file afterwards with --stats")
    if len(each) > 1 and options.float_budget is not None:
        raise InputError("--float_budget: give one --target; each has parts of its own that cost it most")
    first = Checked(each[0])
    found = [first, *(Checked(one, first.source) for one in each[1:])]
    Staging(options.output_dir)
    return found


def check_new(path: Path) -> None:
    """Raise InputError unless a statistics file can be made there."""
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--save_stats: {path.parent} is not a folder that can be written to")
    Partial(path, "--save_stats")
