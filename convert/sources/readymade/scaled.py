"""Weights of 4 and 8 bits as they are, whose activations may be quantized too.

W = (weight - zero_point) * weight_scale * pre_quant_scale
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ....plugins import fp8
from ....plugins.lazy import torch
from ...errors import InputError, shown
from ...files.reader import Reader
from ...numbers import rounding
from ...numbers.quantized import QuantizedLinear
from . import unpacking as repack
from .gptq import unreadable
from .kinds import ANEW, CACHE_SCALES, SCALES, WHOLE_ROW, Expected, Inputs, LeftOut, ReadyMade, cache_of
from .mixed import Mixed
from .names import check_known, names, shell
from .unpacking import Tensors

# How a weight is stored, by safetensors' dtype: ROW_PAIRS are two rows of 4 bits a byte.
INT8, FLOAT8, ROW_PAIRS = "I8", "F8_E4M3", "U8"
MODELOPT = "modelopt"
# ModelOpt's quant_algo: how it stores a weight.
ALGORITHMS = {
    "FP8": FLOAT8,
    "FP8_PER_CHANNEL_PER_TOKEN": FLOAT8,
    "W8A8_SQ_PER_CHANNEL": INT8,
    "W8A16": INT8,
    "W4A16_AWQ": ROW_PAIRS,
}
PER_CHANNEL = {"FP8": False, "FP8_PER_CHANNEL_PER_TOKEN": True, "W8A8_SQ_PER_CHANNEL": True, "W8A16": True} | {
    "W4A16_AWQ": None
}
READS = {
    "FP8": Inputs("fp8", static=True),
    "FP8_PER_CHANNEL_PER_TOKEN": Inputs("fp8"),
    "W8A8_SQ_PER_CHANNEL": Inputs("int8", static=True),
    "W8A16": Inputs(),
    "W4A16_AWQ": Inputs(),
}
MIXED_PRECISION = "MIXED_PRECISION"
# TensorRT-LLM's QuantAlgo that holds such weights: how they are stored, a scale per channel, inputs and static scales.
KEPT = {
    (INT8, True, "int8", False): "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
    (INT8, True, "int8", True): "W8A8_SQ_PER_CHANNEL",
    (INT8, True, None, False): "W8A16",
    (FLOAT8, False, "fp8", True): "FP8",
    (FLOAT8, True, "fp8", False): "FP8_PER_CHANNEL_PER_TOKEN",
    (ROW_PAIRS, None, None, False): "W4A16_AWQ",
}
KNOWN = (
    "config_groups", "exclude_modules", "group_size", "has_zero_point", "ignore", "kv_cache_quant_algo",
    "kv_cache_scheme", "pre_quant_scale", "producer", "quant_algo", "quant_method",
)  # fmt: skip


@dataclass(frozen=True)
class Scaled(ReadyMade):
    """One integer or FP8 value a weight, or two integers of 4 bits a byte.

    Attributes:
        stored: INT8, FLOAT8 or ROW_PAIRS.
        zero_points: whether weights may have zero points.
        per_channel: whether there is a scale for each output channel, or one; None where nothing is said.
        smoothed: False where it says that no linear has a pre_quant_scale.
        reads: how inputs are rounded; None where that is not known here.
    """

    stored: str = INT8
    zero_points: bool = False
    per_channel: bool | None = None
    smoothed: bool = True
    reads: Inputs | None = None

    @property
    def inputs(self) -> Inputs | None:
        return self.reads

    @property
    def algo(self) -> str | None:
        if self.reads is None or self.zero_points or not self.reads.symmetric:
            return None
        return KEPT.get((self.stored, self.per_channel, self.reads.kind, self.reads.static))

    @property
    def small(self) -> tuple[str, ...]:
        return "weight_zero_point", "input_zero_point"

    def tensors(self, name: str, out_features: int, in_features: int) -> dict[str, Expected]:
        groups = self.groups(name, in_features)
        rows = out_features // 2 if self.stored == ROW_PAIRS else out_features
        by_channel: list[list[int]] = [[out_features, groups]]
        by_channel += [[out_features]] if self.group_size == WHOLE_ROW else []
        whole: list[list[int]] = [[1], []] if self.group_size == WHOLE_ROW else []
        shapes = {None: by_channel + whole, True: by_channel, False: whole}[self.per_channel]
        number = tuple((dtype, shape) for dtype in SCALES for shape in ([], [1]))
        optional = ("input_scale", "output_scale", *CACHE_SCALES)
        static = self.reads is not None and self.reads.static
        factors = {"pre_quant_scale": Expected.of(SCALES, in_features, optional=True)} if self.smoothed else {}
        return factors | {
            "weight": Expected.of((self.stored,), rows, in_features),
            "weight_scale": Expected(tuple((dtype, shape) for dtype in SCALES for shape in shapes)),
            "weight_zero_point": Expected(tuple(("I8", shape) for shape in shapes), optional=not self.zero_points),
            "input_zero_point": Expected((("I8", [1]), ("I8", [])), optional=True),
            **{suffix: Expected(number, suffix != "input_scale" or not static) for suffix in optional},
        }

    def check(self, tensors: Tensors, name: str) -> str | None:
        zero = tensors.get("weight_zero_point")
        if zero is not None and not self.zero_points and zero.any():
            raise InputError(f"{name}: holds zero points, but {self.file.name} says that there are none; correct it")
        middle = tensors.get("input_zero_point")
        if middle is not None and middle.any() and (self.reads is None or self.reads.symmetric):
            raise InputError(f"{name}: input_zero_point is not 0, but {self.file.name} says symmetric; correct it")
        return None

    def weight(self, tensors: Tensors, name: str) -> torch.Tensor:
        self.check(tensors, name)
        return repack.scaled(tensors, name)

    def quantized(self, tensors: Tensors, name: str) -> QuantizedLinear:
        self.check(tensors, name)
        made = repack.scaled_integers(tensors, name)
        if self.reads is None:
            raise InputError(f"{self.file.name}: how {name} rounds its input is not known here")
        if not self.reads.static:
            return made
        scale, zero = tensors["input_scale"], tensors.get("input_zero_point")
        if not float(scale) > 0:
            raise InputError(f"{name}.input_scale: {float(scale):g} is no scale; give the unquantized model")
        steps = fp8.MAX if self.reads.kind == "fp8" else 127
        return replace(made, range=steps * float(scale), input_zero=0 if zero is None else int(zero))

    def kept(self, tensors: Tensors, name: str, group_size: int, dtype: torch.dtype) -> QuantizedLinear:
        made = self.quantized(tensors, name)
        if not (made.scale > 0).all():
            raise InputError(f"{name}: holds scales that are not positive; {ANEW}")
        if made.smoother is not None and self.algo not in ("W4A16_AWQ", "W8A8_SQ_PER_CHANNEL"):
            raise InputError(f"{name}.pre_quant_scale: {self.algo} has no place for it; {ANEW}")
        if self.stored != ROW_PAIRS:
            return made
        scale = rounding.stored(made.scale, dtype).float().reshape(len(made.values), -1)
        times = made.values.shape[1] // scale.shape[1] // group_size
        return replace(made, scale=scale.repeat_interleave(times, 1))


def modelopt_config(said: Reader, file: Path) -> ReadyMade:
    """What ModelOpt's hf_quant_config.json says, or its copy in config.json."""
    mixed = said.values.get("quant_algo") == MIXED_PRECISION
    check_known(said, (*KNOWN, "quantized_layers") if mixed else KNOWN)
    if not mixed:
        return modelopt_scaled(said, said, file)
    layers, found = said.section("quantized_layers"), dict[str, Scaled]()
    for name in layers.values:
        entry = layers.section(name)
        check_known(entry, KNOWN)
        found[name] = modelopt_scaled(entry, said, file)
    if not found:
        raise InputError(f"{said.file}: no quantized_layers in it, which {MIXED_PRECISION} needs")
    return Mixed.of_ways(f"{MODELOPT} {MIXED_PRECISION}", found)


def modelopt_scaled(said: Reader, whole: Reader, file: Path) -> Scaled:
    """What one algorithm's entry says; whole: what the file says of all linears."""
    algo = said.values.get("quant_algo")
    if not isinstance(algo, str) or algo not in ALGORITHMS:
        raise unreadable(said, "quant_algo", algo, f"{', '.join(ALGORITHMS)} do")
    if said.flag("has_zero_point"):
        raise unreadable(said, "has_zero_point", True, "make the model without zero points")
    size, stored = WHOLE_ROW, ALGORITHMS[str(algo)]
    if stored == ROW_PAIRS:
        if not said.has("group_size"):
            raise InputError(f"{said.file}: no group_size for {shown(algo)}; hf_quant_config.json must be there too")
        size = said.integer("group_size")
    excluded = "exclude_modules" if whole.has("exclude_modules") else "ignore"
    left = (LeftOut(excluded, shell(names(whole, excluded), whole.file, excluded)),)
    key = "kv_cache_quant_algo" if whole.has("kv_cache_quant_algo") else "kv_cache_scheme"
    return Scaled(
        file,
        f"{MODELOPT} {algo}",
        4 if stored == ROW_PAIRS else 8,
        size,
        stored,
        per_channel=PER_CHANNEL[str(algo)],
        smoothed=said.flag("pre_quant_scale", True),
        reads=READS[str(algo)],
        left_out=left,
        cache_scales=True,
        cache=cache_of(whole, key),
    )
