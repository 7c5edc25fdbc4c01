"""The quantization of a model that options mean."""

from __future__ import annotations

from ..errors import InputError
from ..quantize.options import QuantizeOptions
from ..quantize.precision import Precision, mixed, of_parts
from ..quantize.quantization import Quantization
from ..quantize.scheme import Scheme
from ..sources.folder import Source
from ..sources.readymade.kinds import ANEW, quant_of
from ..targets.base import Target
from ..targets.registry import scheme_for
from .options import ConvertOptions


def quantization_of(options: ConvertOptions, source: Source, kind: type[Target]) -> Quantization:
    """How the options quantize a model for a target.

    Raises:
        InputError: a quantization or dtype that is not supported.
    """
    algo = quant_of(source.ready, options.quant, options.requantize)
    ready = None if options.requantize else source.ready
    group_size = ready.engine_group(options.group_size) if ready else options.group_size or 128
    if ready is not None and algo not in kind.schemes():
        holds = next((name for name in kind.schemes() if scheme_like(kind, name, algo)), next(iter(kind.schemes())))
        raise InputError(
            f"{ready.file.name}: the folder's {ready.method} weights are {algo}, not read by {kind.title}; give "
            f"--requantize --quant {holds}"
        )
    base, cache = scheme_for(kind, algo, group_size), options.kv_cache
    layers = [layer_scheme(text, group_size, kind) for text in options.quant_layer]
    if ready:
        precision = as_it_is(source, base, cache, kind)
    else:
        precision = mixed(source.model, base, options.exclude, layers, cache)
        kind.check_precision(precision)
    if options.symmetric and ready is None and not any(s.grouped and s.zeros for s in precision.schemes):
        raise InputError("--symmetric is for W4A16_GPTQ and W8A16_GPTQ; no other format here has zero points to lose")
    if options.rounding == "gptq" and not any(scheme.takes_gptq for scheme in precision.schemes):
        what = kind.quant(precision) or "a model in floating point"
        raise InputError(f"--rounding gptq: {what} has no integers that GPTQ chooses; leave it out")
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
    rotation = options.seed if rotate and source.model.family.rotates else None
    dtype = kind.output_dtype(options.dtype, source.dtype)
    return Quantization(precision, choices, dtype, rotation, kind.turned_tables)


def scheme_like(kind: type[Target], name: str, algo: str | None) -> bool:
    """Whether a target's scheme begins as an algorithm does: with the same bits of weights and activations."""
    return algo is not None and name.partition("_")[0] == algo.partition("_")[0]


def as_it_is(source: Source, base: Scheme, kv_cache: str | None, kind: type[Target]) -> Precision:
    """The precision of a folder that is quantized already: linears that its tool left in float stay so."""
    left = dict.fromkeys(source.left_in_float(), Scheme())
    try:
        precision = of_parts(source.model, base, left, kv_cache)
        kind.check_precision(precision)
    except InputError as error:
        raise InputError(f"{error}; {ANEW}") from None
    return precision


def layer_scheme(text: str, group_size: int, kind: type[Target]) -> tuple[str, Scheme]:
    """The pattern and the scheme of one --quant_layer PATTERN=ALGO."""
    pattern, equals, algo = text.rpartition("=")
    if not equals or not pattern or not algo:
        raise InputError(f"--quant_layer {text}: give PATTERN=ALGO, such as '{pattern or text or '*.mlp'}=W8A16'")
    return pattern, scheme_for(kind, None if algo == "none" else algo, group_size)
