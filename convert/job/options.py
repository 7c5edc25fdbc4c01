"""What to convert and how: the command line's flags, checked, and the quantizer that they mean."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...plugins.weight_only_groupwise_quant_matmul import GROUP_SIZES
from ..errors import InputError
from ..files.bounds import bounded, check
from ..models.rotation import Rotation
from ..numbers.ranges import METHODS
from ..quantize.options import QuantizeOptions
from ..quantize.precision import KV_CACHE, Precision, mixed, of_parts
from ..quantize.quantizer import Quantizer
from ..quantize.scheme import Scheme
from ..sources.documents import BUILT_IN
from ..sources.folder import Source
from ..sources.readymade.kinds import ANEW, quant_of
from ..sources.text import Tokens, check_length, read_tokens
from ..targets.trtllm import mixture
from ..targets.trtllm.formats import SCHEMES, scheme_of
from ..targets.trtllm.packing import GENERATIONS

# Options that say where things lie, not what they are.
BY_RUN = ("model_dir", "output_dir", "stats", "save_stats")


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert and how. Fields are the command line's flags.

    Attributes:
        quant: TensorRT-LLM's QuantAlgo, or None for floating-point weights.
        kv_cache: None, "INT8" or "FP8".
        alpha: SmoothQuant's migration strength; None searches it for every smoothing group.
        act_range: "auto" or a method of ranges.METHODS, for static activation scales.
        fold, rounding, symmetric: see options.QuantizeOptions.
        group_size: input channels that share a scale, for AWQ and GPTQ; None: 128, or the most that a folder which
            is quantized already can keep.
        sm: the GPU generation that W8A16, W4A16 and GPTQ integers are arranged for.
        propagate: "float": later layers are calibrated on the source's hidden states; "quantized": on those of the
            layers quantized before, for weight-only schemes; "auto": quantized where GPTQ rounds and no file of
            statistics is read or made.
        requantize: quantize the dequantized weights of a folder that is quantized already, instead of repacking it.
        exclude: shell patterns of linears, or modules, that stay in floating point.
        quant_layer: PATTERN=ALGO each: linears that are quantized otherwise; see precision.mixed.
        rotate: rotate the residual stream (see rotation); None does so where weights have one scale a matrix.
        calib: a built-in text, a text file, a data set, or a safetensors file of token ids; see text.read_tokens.
        stats: a file of statistics to use instead of a forward pass; save_stats: the one to make.
    """

    model_dir: str
    output_dir: str
    dtype: str = bounded("auto", words=("auto", "float16", "bfloat16"))
    quant: str | None = bounded(None, words=tuple(SCHEMES), none="none")
    kv_cache: str | None = bounded(None, words=KV_CACHE, none="none")
    tp_size: int = bounded(1, least=1)
    pp_size: int = bounded(1, least=1)
    alpha: float | None = bounded(None, least=0, most=1, none="auto")
    act_range: str = bounded("auto", words=("auto", *METHODS))
    fold: bool = True
    rounding: str = bounded("auto", words=("auto", "nearest", "gptq"))
    symmetric: bool = False
    group_size: int | None = bounded(None, words=GROUP_SIZES)
    sm: int = bounded(80, words=GENERATIONS)
    propagate: str = bounded("auto", words=("auto", "float", "quantized"))
    requantize: bool = False
    exclude: tuple[str, ...] = ()
    quant_layer: tuple[str, ...] = ()
    rotate: bool | None = None
    calib: str = "pydoc"
    calib_size: int = bounded(64, least=1)
    calib_seq_len: int = bounded(512, least=2)
    device: str = "auto"
    seed: int = bounded(0, least=0, most=2**63 - 1)
    stats: str | None = None
    save_stats: str | None = None

    def reads(self) -> dict[str, str | None]:
        """What a conversion reads, by flag."""
        calib = None if self.calib in BUILT_IN else self.calib
        return {"--model_dir": self.model_dir, "--calib": calib, "--stats": self.stats}

    def writes(self) -> dict[str, str | None]:
        """What it makes."""
        return {"--output_dir": self.output_dir, "--save_stats": self.save_stats}


def check_options(options: ConvertOptions) -> None:
    """Raise InputError for a value that no conversion can have, or for options that contradict each other."""
    check(options, ("model_dir", "output_dir"))
    given = {"--alpha": options.alpha is not None, "--act_range": options.act_range != "auto"}
    algorithms = {options.quant, *(text.rpartition("=")[2] for text in options.quant_layer)}
    smooths = {name for name, scheme in SCHEMES.items() if scheme.smooths}
    for flag in [flag for flag, there in given.items() if there and not algorithms & smooths]:
        raise InputError(f"{flag} belongs to SmoothQuant: give --quant, or --smoothquant ALPHA as upstream has it")
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


def quantizer_of(options: ConvertOptions, source: Source) -> Quantizer:
    """How the options quantize a model.

    Raises:
        InputError: a quantization or dtype that is not supported.
    """
    algo = quant_of(source.ready, options.quant, options.requantize)
    ready = None if options.requantize else source.ready
    group_size = ready.engine_group(options.group_size) if ready else options.group_size or 128
    base, cache = scheme_of(algo, group_size), options.kv_cache
    layers = [layer_scheme(text, group_size) for text in options.quant_layer]
    if ready:
        precision = as_it_is(source, base, cache)
    else:
        precision = mixed(source.model, base, options.exclude, layers, cache)
        mixture.check(precision)
    if options.symmetric and ready is None and not any(s.grouped and s.zeros for s in precision.schemes):
        raise InputError("--symmetric is for W4A16_GPTQ and W8A16_GPTQ; no other format here has zero points to lose")
    choices = QuantizeOptions(
        options.alpha, options.act_range, options.fold, options.rounding, options.symmetric, ready is not None
    )
    rotate = (
        options.rotate
        if options.rotate is not None
        else (options.fold and any(scheme.gains_from_rotation for scheme in precision.schemes))
    )
    if options.rotate and not source.model.family.rotates:
        raise InputError(
            f"--rotate: norms of {source.model.architecture} do not commute with a rotation; leave it away"
        )
    rotation = Rotation(source.model.hidden_size, options.seed) if rotate and source.model.family.rotates else None
    return Quantizer(precision, choices, output_dtype(options.dtype, source.dtype), rotation)


def as_it_is(source: Source, base: Scheme, kv_cache: str | None) -> Precision:
    """The precision of a folder that is quantized already: linears that its tool left in float stay so."""
    left = dict.fromkeys(source.left_in_float(), Scheme())
    try:
        precision = of_parts(source.model, base, left, kv_cache)
        mixture.check(precision)
    except InputError as error:
        raise InputError(f"{error}; {ANEW}") from None
    return precision


def layer_scheme(text: str, group_size: int) -> tuple[str, Scheme]:
    """The pattern and the scheme of one --quant_layer PATTERN=ALGO."""
    pattern, equals, algo = text.rpartition("=")
    if not equals or not pattern or not algo:
        raise InputError(f"--quant_layer {text}: give PATTERN=ALGO, such as '{pattern or text or '*.mlp'}=W8A16'")
    return pattern, scheme_of(None if algo == "none" else algo, group_size)


def read_calibration(options: ConvertOptions, source: Source) -> Tokens:
    """The calibration tokens.

    Raises:
        InputError: a text that cannot be used, or sequences longer than the model's.
    """
    model, length = source.model, options.calib_seq_len
    check_length(model, length, "--calib_seq_len")
    return read_tokens(options.calib, source.folder, options.calib_size, length, model.vocab_size, "--calib")


def output_dtype(asked: str, source: str) -> str:
    """The engine's dtype: as asked, else the source's, float32 becoming float16 as upstream has it."""
    if asked == "auto":
        return "float16" if source == "float32" else source
    return asked
