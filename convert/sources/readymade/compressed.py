"""compressed-tensors, as llm-compressor writes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError, shown
from ...files.reader import Reader
from . import unpacking as repack
from .gptq import bits_of, group_of, unreadable
from .kinds import SCALES, WHOLE_ROW, Expected, Inputs, LeftOut, Packed, ReadyMade, cache_of
from .names import Holds, check_known, exact_or_pattern, names
from .scaled import FLOAT8, INT8, Scaled
from .unpacking import Quantized, Tensors

COMPRESSED = "compressed-tensors"
PACKED, WHOLE = "pack-quantized", {"int-quantized": INT8, "float-quantized": FLOAT8, "naive-quantized": None}
TOP = (
    "config_groups", "format", "global_compression_ratio", "ignore", "kv_cache_scheme", "quant_method",
    "quantization_status", "run_compressed", "sparsity_config", "transform_config", "version",
)  # fmt: skip
GROUP = ("format", "input_activations", "output_activations", "targets", "weights")
WEIGHTS = (
    "actorder", "block_structure", "dynamic", "group_size", "num_bits", "observer", "observer_kwargs", "scale_dtype",
    "strategy", "symmetric", "type", "zp_dtype",
)  # fmt: skip


@dataclass(frozen=True)
class CompressedTensors(Packed):
    """The pack-quantized format."""

    @property
    def small(self) -> tuple[str, ...]:
        return "weight_zero_point", "weight_g_idx"

    def tensors(self, name: str, out_features: int, in_features: int) -> dict[str, Expected]:
        groups = self.groups(name, in_features)
        packed_out, packed_in = -(-out_features * self.bits // 32), -(-in_features * self.bits // 32)
        zero = (("I32", [packed_out, groups]), ("I8", [out_features, groups]))
        return {
            "weight_packed": Expected.of(("I32",), out_features, packed_in),
            "weight_scale": Expected.of(SCALES, out_features, groups),
            "weight_shape": Expected.of(("I64", "I32"), 2),
            "weight_zero_point": Expected(zero, optional=not self.zero_points),
            "weight_g_idx": self.index(in_features),
        }

    def check(self, tensors: Tensors, name: str) -> str | None:
        self.check_index(tensors.get("weight_g_idx"), f"{name}.weight_g_idx", "actorder: group")
        zero = tensors.get("weight_zero_point")
        if zero is not None and not self.zero_points and repack.compressed_zero(zero, self.bits).any():
            raise self.no_zeros(name)
        return None

    def linear(self, tensors: Tensors, name: str) -> Quantized:
        self.check(tensors, name)
        return repack.compressed_tensors(tensors, name, self.bits)


def compressed_config(said: Reader, file: Path) -> ReadyMade:
    """What a configuration of compressed-tensors says."""
    check_known(said, TOP)
    groups = said.section("config_groups")
    if len(groups.values) != 1:
        works = "quantize every linear with the same bits and groups"
        raise unreadable(said, "config_groups", list(groups.values), works)
    group = groups.section(next(iter(groups.values)))
    check_known(group, GROUP)
    weights = group.section("weights")
    check_known(weights, WEIGHTS)
    stored = format_of(said, group)
    check_whole(said, weights)
    left = tuple(left_out(said, group))
    zero_points = weights.has("symmetric") and not weights.flag("symmetric")
    if stored == PACKED:
        return packed_config(said, group, weights, file, zero_points, left)
    kind = {"int": INT8, "float": FLOAT8}.get(str(weights.values.get("type", "int")))
    if kind is None or WHOLE[stored] not in (None, kind) or weights.integer("num_bits") != 8:
        raise unreadable(said, "weights", {key: weights.values.get(key) for key in ("type", "num_bits")}, "8 bits do")
    strategy = weights.values.get("strategy")
    if strategy not in ("tensor", "channel"):
        raise unreadable(said, "weights strategy", strategy, "tensor and channel do")
    check_no_groups(said, weights)
    method, per_channel = f"{COMPRESSED} {stored}", strategy == "channel"
    cache, reads = cache_of(said, "kv_cache_scheme"), inputs_of(group)
    return Scaled(
        file, method, 8, WHOLE_ROW, kind, zero_points, per_channel,
        reads=reads, left_out=left, cache_scales=True, cache=cache,
    )  # fmt: skip


def inputs_of(group: Reader) -> Inputs | None:
    """How inputs are rounded; None for a way that is not known here."""
    said = group.section("input_activations").values
    if not said:
        return Inputs()
    kind = {"int": "int8", "float": "fp8"}.get(str(said.get("type", "int")))
    dynamic, strategy = said.get("dynamic"), said.get("strategy")
    known = (dynamic is True and strategy == "token") or (dynamic in (False, None) and strategy == "tensor")
    if kind is None or not known or said.get("num_bits") != 8:
        return None
    return Inputs(kind, dynamic is not True, said.get("symmetric", True) is True)


def packed_config(
    said: Reader, group: Reader, weights: Reader, file: Path, zero_points: bool, left: tuple[LeftOut, ...]
) -> CompressedTensors:
    for key in ("input_activations", "output_activations"):
        if group.values.get(key):
            raise unreadable(said, key, group.values[key], "only weights may be quantized")
    if weights.values.get("type", "int") != "int":
        raise unreadable(said, "weights type", weights.values["type"], "int does")
    strategy = weights.values.get("strategy")
    if strategy not in ("group", "channel"):
        raise unreadable(said, "weights strategy", strategy, "group and channel do")
    if strategy == "channel":
        check_no_groups(said, weights)
    size = WHOLE_ROW if strategy == "channel" else group_of(weights)
    reordered = order_of(said, weights)
    return CompressedTensors(
        file,
        COMPRESSED,
        bits_of(weights, "num_bits"),
        size,
        zero_points,
        reordered,
        left_out=left,
        cache_scales=True,
        cache=cache_of(said, "kv_cache_scheme"),
    )


def check_no_groups(said: Reader, weights: Reader) -> None:
    """Raise InputError where groups have a size beside a strategy without groups."""
    size, strategy = weights.values.get("group_size"), weights.values["strategy"]
    if size not in (None, WHOLE_ROW):
        raise InputError(
            f"{said.file}: strategy {strategy} and group_size {shown(size)} contradict each other; correct it"
        )


def order_of(said: Reader, weights: Reader) -> bool:
    """Whether channels are in groups by activation; other orders were undone before packing."""
    order = weights.values.get("actorder")
    if order not in (None, False, True, "group", "dynamic", "static", "weight"):
        raise unreadable(said, "actorder", order, "group, weight and static do")
    return order in (True, "group", "dynamic")


def format_of(said: Reader, group: Reader) -> str:
    """How weights are stored; a group may say so, and everything."""
    stated = [one.values["format"] for one in (group, said) if one.has("format")]
    if not stated or stated[0] not in (PACKED, *WHOLE):
        raise unreadable(said, "format", stated[0] if stated else None, "save the model as pack-quantized")
    if stated[-1] not in (stated[0], "mixed-precision"):
        raise InputError(f"{said.file}: states the formats {shown(stated)}; correct it to one")
    return str(stated[0])


def check_whole(said: Reader, weights: Reader) -> None:
    """Raise InputError for what would change every weight."""
    if said.values.get("transform_config"):
        works = "make the model without it"
        raise unreadable(said, "transform_config", said.values["transform_config"], works)
    if said.section("sparsity_config").values.get("format", "dense") != "dense":
        raise unreadable(said, "sparsity_config", said.values["sparsity_config"], "save the model without sparsity")
    if said.values.get("quantization_status") not in (None, "compressed"):
        status = said.values["quantization_status"]
        raise unreadable(said, "quantization_status", status, "save the model compressed")
    if weights.values.get("block_structure") or weights.values.get("dynamic"):
        key = "block_structure" if weights.values.get("block_structure") else "dynamic"
        raise unreadable(said, f"weights {key}", weights.values[key], "weights have fixed scales")


def left_out(said: Reader, group: Reader) -> list[LeftOut]:
    """``ignore`` leaves modules in float, and so do ``targets`` that do not name them."""
    ignored = linears(names(said, "ignore"), said.file, "ignore")
    targeted = linears(names(group, "targets"), said.file, "targets")
    left = [LeftOut("ignore", ignored)]
    if group.has("targets"):
        left.append(LeftOut("targets", lambda name: not targeted(name)))
    return left


def linears(entries: list[str], file: str, key: str) -> Holds:
    """Which linears a list means, which may name their class as well as themselves."""
    return (lambda name: True) if "Linear" in entries else exact_or_pattern(entries, file, key)
