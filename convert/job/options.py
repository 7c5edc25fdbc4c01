"""What to convert and how: the command line's flags, held against each other."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...plugins.weight_only_groupwise_quant_matmul import GROUP_SIZES
from ..errors import InputError, shown
from ..files.bounds import Options, bounded
from ..numbers.ranges import METHODS
from ..quantize.precision import KV_CACHE
from ..sources.documents import BUILT_IN
from ..targets.base import Wishes
from ..targets.registry import NAMES, TARGETS
from ..targets.trtllm.packing import GENERATIONS

# Options that say where things lie, not what they are.
BY_RUN = ("model_dir", "output_dir", "stats", "save_stats")


@dataclass(frozen=True)
class ConvertOptions(Options):
    """What to convert and how. Fields are the command line's flags.

    Attributes:
        model_dir, output_dir: paths; a comparison needs no output_dir. Several targets get a folder each in it.
        target: the runtimes to write for, names of registry.TARGETS.
        quant: TensorRT-LLM's QuantAlgo or a target's own name for it, or None for floating-point weights.
        kv_cache: None, "INT8" or "FP8".
        moe_tp_size, moe_ep_size: ranks that cut each expert, and parts that experts are dealt out to; their product is
            tp_size (None: tp_size / moe_ep_size).
        alpha: SmoothQuant's migration strength; None searches it for every smoothing group.
        act_range: "auto" or a method of ranges.METHODS, for static activation scales.
        fold, rounding, symmetric: see options.QuantizeOptions.
        group_size: input channels that share a scale, for AWQ and GPTQ; None: 128, or the most that a folder which
            is quantized already can keep.
        sm: the GPU generation that W8A16, W4A16 and GPTQ integers are arranged for.
        propagate: "float": every linear is calibrated on what it reads in the source; "quantized": on what it reads
            behind the linears quantized before it, for weight-only schemes; "auto": quantized where GPTQ rounds and no
            file of statistics is read or made.
        requantize: quantize the dequantized weights of a folder that is quantized already, instead of repacking it.
        exclude: shell patterns of linears, or modules, that stay in floating point.
        quant_layer: PATTERN=ALGO each: linears that are quantized otherwise; see precision.mixed.
        float_budget: percent of the quantized weights that stay in floating point too: those that buy most accuracy.
        rotate: rotate the residual stream (see rotation); None does so where weights have one scale a matrix.
        calib: a built-in text, a text file, a data set, or a safetensors file of token ids; see text.read_tokens.
        calib_all_experts: every expert sees every calibration token, though it counts only where it is sent.
        stats: a file of statistics to use instead of a forward pass; save_stats: the one to make.
        shard_size: GB that one file of tensors may hold, of targets that do not cut by ranks.
    """

    model_dir: str = bounded(MISSING, path=True)
    output_dir: str = bounded("", path=True, empty=True)
    target: tuple[str, ...] = ("trtllm",)
    dtype: str = bounded("auto", words=("auto", "float16", "bfloat16"))
    quant: str | None = bounded(None, words=NAMES, none="none")
    kv_cache: str | None = bounded(None, words=KV_CACHE, none="none")
    tp_size: int = bounded(1, least=1)
    pp_size: int = bounded(1, least=1)
    moe_tp_size: int | None = bounded(None, least=1)
    moe_ep_size: int = bounded(1, least=1)
    alpha: float | None = bounded(None, least=0, most=1, none="auto")
    act_range: str = bounded("auto", words=("auto", *METHODS))
    fold: bool = True
    rounding: str = bounded("auto", words=("auto", "nearest", "gptq"))
    symmetric: bool = False
    group_size: int | None = bounded(None, words=(32, *GROUP_SIZES))
    sm: int = bounded(80, words=GENERATIONS)
    propagate: str = bounded("auto", words=("auto", "float", "quantized"))
    requantize: bool = False
    exclude: tuple[str, ...] = ()
    quant_layer: tuple[str, ...] = ()
    float_budget: float | None = bounded(None, above=0, most=50)
    rotate: bool | None = None
    calib: str = "pydoc"
    calib_size: int = bounded(64, least=1)
    calib_seq_len: int = bounded(512, least=2)
    calib_all_experts: bool = False
    device: str = "auto"
    seed: int = bounded(0, least=0, most=2**63 - 1)
    stats: str | None = bounded(None, path=True)
    save_stats: str | None = bounded(None, path=True)
    shard_size: float = bounded(5.0, least=1e-6, most=1e6)

    def __post_init__(self) -> None:
        if isinstance(self.target, str):
            object.__setattr__(self, "target", (self.target,))
        super().__post_init__()

    def each(self) -> list[ConvertOptions]:
        """The conversion of each target by itself.

        Raises:
            InputError: a target that there is not, or one named twice.
        """
        for name in self.target:
            if name not in TARGETS:
                raise InputError(f"--target {shown(name)}: the targets are {', '.join(TARGETS)}")
            if self.target.count(name) > 1:
                raise InputError(f"--target {name} is given twice")
        if not self.target:
            raise InputError(f"--target: give one of {', '.join(TARGETS)}")
        if len(self.target) == 1:
            return [self]
        known = {TARGETS[name].cuts: of_kind(TARGETS[name].cuts) for name in self.target}
        each = []
        for name in self.target:
            others = {
                flag: default for cuts, own in known.items() if cuts != TARGETS[name].cuts for flag, default in own
            }
            each.append(replace(self, target=(name,), output_dir=str(Path(self.output_dir) / name), **others))
        return each

    @property
    def wishes(self) -> Wishes:
        """What is asked of the folder besides how linears are quantized."""
        shard = int(self.shard_size * 1e9)
        return Wishes(self.tp_size, self.pp_size, self.moe_ep_size, self.sm, self.alpha, shard)

    def reads(self) -> dict[str, str | None]:
        """What a conversion reads, by flag."""
        calib = None if self.calib in BUILT_IN else self.calib
        return {"--model_dir": self.model_dir, "--calib": calib, "--stats": self.stats}

    def writes(self) -> dict[str, str | None]:
        """What it makes."""
        return {"--output_dir": self.output_dir, "--save_stats": self.save_stats}


def of_kind(cuts: bool) -> list[tuple[str, Any]]:
    """The options, and their defaults, that only targets mean which cut by ranks, or only the others."""
    names = ("tp_size", "pp_size", "moe_tp_size", "moe_ep_size", "sm") if cuts else ("shard_size",)
    return [(item.name, item.default) for item in fields(ConvertOptions) if item.name in names]


def check_options(options: ConvertOptions) -> None:
    """Raise InputError for options that contradict each other."""
    given = {"--alpha": options.alpha is not None, "--act_range": options.act_range != "auto"}
    algorithms = {options.quant, *(text.rpartition("=")[2] for text in options.quant_layer)}
    smooths = {name for kind in TARGETS.values() for name, scheme in kind.schemes().items() if scheme.smooths}
    for flag in [flag for flag, there in given.items() if there and not algorithms & smooths]:
        raise InputError(
            f"{flag} belongs to SmoothQuant: give a --quant that begins with W8A8, or --smoothquant ALPHA as "
            "upstream has it"
        )
    if options.stats and options.save_stats:
        raise InputError("--stats and --save_stats are both given: the statistics are in a file already; give one")
    if options.propagate == "quantized" and (options.stats or options.save_stats):
        flag = "--stats" if options.stats else "--save_stats"
        raise InputError(
            f"--propagate quantized needs a forward pass behind every quantized layer; {flag} is for the statistics "
            "of the float model"
        )


def settled(options: ConvertOptions) -> ConvertOptions:
    """Statistics in a file are those of the float model, so that every scheme may read them."""
    if options.propagate == "auto" and (options.stats or options.save_stats):
        return replace(options, propagate="float")
    return options
