"""Weights of 4 and 8 bits with a scale each, whose activations are quantized too: read to be quantized anew.

W = (weight - zero_point) * weight_scale * pre_quant_scale
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ....plugins.lazy import torch
from ...errors import InputError, shown
from ...files.reader import Reader
from . import unpacking as repack
from .gptq import unreadable
from .kinds import CACHE_SCALES, SCALES, WHOLE_ROW, Expected, LeftOut, ReadyMade
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
    """

    stored: str = INT8
    zero_points: bool = False
    per_channel: bool | None = None
    smoothed: bool = True

    @property
    def algo(self) -> str | None:
        return None

    @property
    def small(self) -> tuple[str, ...]:
        return ("weight_zero_point",)

    def tensors(self, name: str, out_features: int, in_features: int) -> dict[str, Expected]:
        groups = self.groups(name, in_features)
        rows = out_features // 2 if self.stored == ROW_PAIRS else out_features
        by_channel: list[list[int]] = [[out_features, groups]]
        by_channel += [[out_features]] if self.group_size == WHOLE_ROW else []
        whole: list[list[int]] = [[1], []] if self.group_size == WHOLE_ROW else []
        shapes = {None: by_channel + whole, True: by_channel, False: whole}[self.per_channel]
        number = tuple((dtype, shape) for dtype in SCALES for shape in ([], [1]))
        optional = ("input_scale", "output_scale", *CACHE_SCALES)
        factors = {"pre_quant_scale": Expected.of(SCALES, in_features, optional=True)} if self.smoothed else {}
        return factors | {
            "weight": Expected.of((self.stored,), rows, in_features),
            "weight_scale": Expected(tuple((dtype, shape) for dtype in SCALES for shape in shapes)),
            "weight_zero_point": Expected(tuple(("I8", shape) for shape in shapes), optional=not self.zero_points),
            "input_zero_point": Expected((("I8", [1]), ("I8", [])), optional=True),
            **{suffix: Expected(number, optional=True) for suffix in optional},
        }

    def check(self, tensors: Tensors, name: str) -> str | None:
        zero = tensors.get("weight_zero_point")
        if zero is not None and not self.zero_points and zero.any():
            raise InputError(f"{name}: holds zero points, but {self.file.name} says that there are none; correct it")
        return None

    def weight(self, tensors: Tensors, name: str) -> torch.Tensor:
        self.check(tensors, name)
        return repack.scaled(tensors, name)


def modelopt_config(said: Reader, file: Path) -> Scaled:
    """What ModelOpt's hf_quant_config.json says, or its copy in config.json."""
    check_known(said, KNOWN)
    algo = said.values.get("quant_algo")
    if algo not in ALGORITHMS:
        raise unreadable(said, "quant_algo", algo, f"{', '.join(ALGORITHMS)} do")
    if said.flag("has_zero_point"):
        raise unreadable(said, "has_zero_point", True, "make the model without zero points")
    size, stored = WHOLE_ROW, ALGORITHMS[str(algo)]
    if stored == ROW_PAIRS:
        if not said.has("group_size"):
            raise InputError(f"{said.file}: no group_size for {shown(algo)}; hf_quant_config.json must be there too")
        size = said.integer("group_size")
    key = "exclude_modules" if said.has("exclude_modules") else "ignore"
    left = (LeftOut(key, shell(names(said, key), said.file, key)),)
    bits = 4 if stored == ROW_PAIRS else 8
    smoothed = said.flag("pre_quant_scale", True)
    return Scaled(file, f"{MODELOPT} {algo}", bits, size, stored, smoothed=smoothed, left_out=left, cache_scales=True)
