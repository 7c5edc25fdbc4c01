"""Folders that others have quantized: what their configuration says, and what that becomes, to the bit.

    AutoGPTQ, GPTQModel                  ->  W4A16_GPTQ, W8A16_GPTQ
    AutoAWQ (gemm) with zero points      ->  W4A16_GPTQ: AWQ's own format has no zeros
    AutoAWQ (gemm) without               ->  W4A16_AWQ, whose prequant_scaling_factor is 1
    compressed-tensors (pack-quantized)  ->  W4A16_GPTQ, W8A16_GPTQ

Integers and scales are kept as they are. GPTQ's format holds -zero * scale, rounded to the engine's dtype: each zero
point can be told from it, and symmetric weights have none. A group of kernels' 64 or 128 channels may repeat the scale
of a larger one, so groups of any multiple of 64, and whole rows, are exact too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import repack
from .errors import InputError, shown
from .files import is_there, read_json
from .reader import Reader
from .repack import Quantized
from .rounding import GROUP_SIZES, Grouped

GPTQ, AWQ, COMPRESSED = "gptq", "awq", "compressed-tensors"
WHOLE_ROW = -1
ENGINE_DTYPES = ("float16", "bfloat16")
SCALES = ("F16", "BF16", "F32")
ANEW = "give --requantize to start from its dequantized weights"


@dataclass(frozen=True)
class Expected:
    """A tensor that a folder may hold.

    Attributes:
        forms: (safetensors dtype, shape) of each form that it may have.
    """

    forms: tuple[tuple[str, list[int]], ...]
    optional: bool = False

    @staticmethod
    def of(dtypes: tuple[str, ...], *shape: int, optional: bool = False) -> Expected:
        return Expected(tuple((dtype, list(shape)) for dtype in dtypes), optional)

    def kinds(self) -> str:
        """The dtypes that it may have, for messages."""
        dtypes = list(dict.fromkeys(dtype for dtype, _ in self.forms))
        return f"{'integers' if 'I32' in dtypes else 'floating-point weights'} ({', '.join(dtypes)})"


@dataclass(frozen=True)
class ReadyMade:
    """How a folder's linears are quantized.

    Attributes:
        file: the file that says so.
        method: GPTQ, AWQ or COMPRESSED.
        bits: 4 or 8.
        group_size: input channels that share a scale; WHOLE_ROW where all do.
        zero_points: False where the folder promises that there are none.
        version: of GPTQ's format.
        reordered: channels are in groups by activation, so that each linear must say which.
    """

    file: Path = field(compare=False)
    method: str
    bits: int
    group_size: int
    zero_points: bool = True
    version: int = 1
    reordered: bool = False

    @property
    def algo(self) -> str:
        """TensorRT-LLM's QuantAlgo that holds these weights exactly."""
        return f"W{self.bits}A16_GPTQ" if self.zero_points or self.method != AWQ else "W4A16_AWQ"

    def engine_group(self, asked: int | None) -> int:
        """The group size of the checkpoint: the one asked for, or the largest that cuts the folder's groups evenly.

        Raises:
            InputError: the one asked for does not.
        """
        works = [size for size in GROUP_SIZES if self.group_size == WHOLE_ROW or self.group_size % size == 0]
        if asked is not None and asked not in works:
            raise InputError(
                f"--group_size {asked} would mix the folder's scales, one every {self.group_size} channels; "
                f"use {' or '.join(map(str, works))}, or {ANEW}"
            )
        return asked or max(works)

    def tensors(self, name: str, out_features: int, in_features: int) -> dict[str, Expected]:
        """What a linear [out, in] consists of, by last name.

        Raises:
            InputError: groups do not cut its input evenly.
        """
        group = in_features if self.group_size == WHOLE_ROW else self.group_size
        if in_features % group:
            raise InputError(
                f"{self.file.name}: group_size {group} does not divide the {in_features} input channels of {name}; "
                "give the unquantized model"
            )
        groups, words = in_features // group, ("I32",)
        packed_out, packed_in = out_features * self.bits // 32, in_features * self.bits // 32
        index = Expected((("I32", [in_features]), ("I32", [0])), optional=True)
        if self.reordered:
            index = Expected.of(words, in_features)
        if self.method == GPTQ:
            return {
                "qweight": Expected.of(words, packed_in, out_features),
                "qzeros": Expected.of(words, groups, packed_out),
                "scales": Expected.of(SCALES, groups, out_features),
                "g_idx": index,
            }
        if self.method == AWQ:
            return {
                "qweight": Expected.of(words, in_features, packed_out),
                "qzeros": Expected.of(words, groups, packed_out),
                "scales": Expected.of(SCALES, groups, out_features),
            }
        zero = (("I32", [packed_out, groups]), ("I8", [out_features, groups]))
        return {
            "weight_packed": Expected.of(words, out_features, packed_in),
            "weight_scale": Expected.of(SCALES, out_features, groups),
            "weight_shape": Expected.of(("I64", "I32"), 2),
            "weight_zero_point": Expected(zero, optional=not self.zero_points),
            "weight_g_idx": index,
        }

    def linear(self, tensors: repack.Tensors, name: str) -> Quantized:
        """The integers, scales and zeros in one linear's tensors."""
        if self.method == GPTQ:
            return repack.gptq(tensors, name, self.bits, self.version)
        if self.method == AWQ:
            return repack.awq(tensors, name)
        return repack.compressed_tensors(tensors, name, self.bits)

    def exact(self, read: Quantized, group_size: int, dtype: torch.dtype) -> Grouped:
        """The same weight in groups of a size that kernels know.

        Raises:
            InputError: the engine would not compute with these very numbers.
        """
        weight = read.grouped()
        if not _holds(dtype, weight.scale):
            works = [f"use --dtype {name}, or " for name in ENGINE_DTYPES if _holds(getattr(torch, name), weight.scale)]
            engine = str(dtype).removeprefix("torch.")
            raise InputError(f"{read.name}: scales are not exact in {engine}; {''.join(works)}{ANEW}")
        if not (weight.scale > 0).all():
            raise InputError(f"{read.name}: holds scales that are not positive; {ANEW}")
        if not self.zero_points and weight.zero is not None:
            raise InputError(
                f"{read.name}: holds zero points, but {self.file.name} says that there are none; correct the file"
            )
        times = weight.integers.shape[1] // weight.scale.shape[1] // group_size
        zero = None if weight.zero is None else weight.zero.repeat_interleave(times, 1)
        return Grouped(weight.integers, weight.scale.repeat_interleave(times, 1), zero)


def _holds(dtype: torch.dtype, scale: torch.Tensor) -> bool:
    return torch.equal(scale.to(dtype).float(), scale)


def quant_of(ready: ReadyMade | None, quant: str | None, requantize: bool) -> str | None:
    """The QuantAlgo that a conversion makes: the one asked for, or the one that a ready-made folder implies.

    Raises:
        InputError: the folder is ready-made for another, or --requantize has nothing to start from.
    """
    if ready is None:
        if requantize:
            raise InputError("--requantize is for folders that are already quantized; --model_dir is not")
        return quant
    if requantize or quant == ready.algo:
        return quant
    if quant is None:
        return ready.algo
    raise InputError(
        f"--quant {quant}: the folder's {ready.method} weights become {ready.algo} as they are; leave --quant away, "
        f"or {ANEW}"
    )


def read_ready_made(folder: Path, config: dict[str, Any]) -> ReadyMade | None:
    """What config.json's quantization_config, quantize_config.json (AutoGPTQ) or quant_config.json (AutoAWQ) says;
    None for a folder in floating point.

    Raises:
        InputError: a quantization that cannot be read, or files that contradict each other.
    """
    said = []
    if config.get("quantization_config"):
        said.append(interpret(folder / "config.json", Reader(config).section("quantization_config").values))
    for name, method in (("quantize_config.json", GPTQ), ("quant_config.json", AWQ)):
        if is_there(folder / name):
            said.append(interpret(folder / name, {"quant_method": method, **read_json(folder / name)}))
    for other in said[1:]:
        if other != said[0]:
            raise InputError(f"{other.file.name} and {said[0].file.name} describe different quantizations; remove one")
    return said[0] if said else None


def interpret(file: Path, config: dict[str, Any]) -> ReadyMade:
    """The description that one configuration gives."""
    method = config.get("quant_method") or config.get("method")
    if method == GPTQ:
        return _gptq(file, config)
    if method == AWQ:
        return _awq(file, config)
    if method == COMPRESSED:
        return _compressed(file, config)
    raise InputError(
        f"{file.name}: the model is already quantized ({shown(method)}); give the unquantized model, "
        f"or one quantized by {GPTQ}, {AWQ} or {COMPRESSED}"
    )


def _gptq(file: Path, config: dict[str, Any]) -> ReadyMade:
    stored = "marlin" if Reader(config, file.name).flag("is_marlin_format") else _format(file, config, "gptq")
    versions = {"gptq": 1, "gptq_v2": 2}
    if stored not in versions:
        raise _unreadable(file, "checkpoint_format", stored, 'save the model with checkpoint_format "gptq_v2"')
    if config.get("pack_dtype") not in (None, "int32"):
        raise _unreadable(file, "pack_dtype", config["pack_dtype"], "pack the model in int32 words")
    if Reader(config, file.name).flag("lm_head"):
        raise _unreadable(file, "lm_head", True, "quantize the model without lm_head, which engines keep in float")
    _check_dynamic(file, config.get("dynamic"))
    bits, group_size = _bits(file, config, "bits"), _group(file, config)
    reordered = Reader(config, file.name).flag("desc_act")
    return ReadyMade(file, GPTQ, bits, group_size, version=versions[stored], reordered=reordered)


def _format(file: Path, config: dict[str, Any], default: str) -> str:
    """GPTQModel has called it checkpoint_format, and calls it format; AutoAWQ calls it version."""
    stated = [config[key] for key in ("checkpoint_format", "format", "version") if config.get(key) is not None]
    if any(other != stated[0] for other in stated):
        raise InputError(f"{file.name}: states the formats {shown(stated)}; correct it to one")
    return str(stated[0]).lower() if stated else default


def _check_dynamic(file: Path, dynamic: Any) -> None:
    """GPTQModel's exceptions: patterns that begin with "-" leave modules in float, others give them other bits."""
    if dynamic and not (isinstance(dynamic, dict) and all(str(pattern).startswith("-:") for pattern in dynamic)):
        raise _unreadable(file, "dynamic", dynamic, "quantize every linear with the same bits and groups")


def _awq(file: Path, config: dict[str, Any]) -> ReadyMade:
    spelled = {{"w_bit": "bits", "q_group_size": "group_size"}.get(key, key): value for key, value in config.items()}
    version = _format(file, spelled, "gemm")
    if version != "gemm":
        raise _unreadable(file, "version", version, "save the model with version gemm")
    zero_points = spelled.get("zero_point") is None or Reader(spelled, file.name).flag("zero_point")
    if _bits(file, spelled, "bits") != 4:
        raise _unreadable(file, "bits", spelled["bits"], "AWQ's format has 4")
    return ReadyMade(file, AWQ, 4, _group(file, spelled), zero_points)


def _compressed(file: Path, config: dict[str, Any]) -> ReadyMade:
    groups = Reader(config, file.name).section("config_groups").values
    if len(groups) != 1:
        raise _unreadable(file, "config_groups", list(groups), "quantize every linear with the same bits and groups")
    group = Reader(groups, file.name).section(next(iter(groups))).values
    stored = group.get("format") or config.get("format")
    if stored != "pack-quantized":
        raise _unreadable(file, "format", stored, "save the model as pack-quantized")
    for key in ("input_activations", "output_activations"):
        if group.get(key):
            raise _unreadable(file, key, group[key], "only weights may be quantized")
    for key in ("kv_cache_scheme", "transform_config"):
        if config.get(key):
            raise _unreadable(file, key, config[key], "make the model without it; --kv_cache quantizes the cache")
    if (
        config.get("sparsity_config")
        and Reader(config, file.name).section("sparsity_config").values.get("format", "dense") != "dense"
    ):
        raise _unreadable(file, "sparsity_config", config["sparsity_config"], "save the model without sparsity")
    weights = Reader(group, file.name).section("weights").values
    if weights.get("type", "int") != "int":
        raise _unreadable(file, "weights type", weights["type"], "int does")
    strategy = weights.get("strategy")
    if strategy not in ("group", "channel"):
        raise _unreadable(file, "weights strategy", strategy, "group and channel do")
    size = _group(file, weights) if strategy == "group" else WHOLE_ROW
    reordered = weights.get("actorder") in (True, "group", "dynamic")
    zero_points = weights.get("symmetric") is not None and not Reader(weights, file.name).flag("symmetric")
    return ReadyMade(file, COMPRESSED, _bits(file, weights, "num_bits"), size, zero_points, reordered=reordered)


def _bits(file: Path, config: dict[str, Any], key: str) -> int:
    if config.get(key) not in (4, 8):
        raise _unreadable(file, key, config.get(key), "4 and 8 do")
    return Reader(config, file.name).integer(key)


def _group(file: Path, config: dict[str, Any]) -> int:
    size = config.get("group_size")
    if size == WHOLE_ROW:
        return WHOLE_ROW
    if not isinstance(size, int) or size <= 0 or size % min(GROUP_SIZES):
        raise _unreadable(file, "group_size", size, "multiples of 64, and -1, do")
    return Reader(config, file.name).integer("group_size")


def _unreadable(file: Path, key: str, value: Any, works: str) -> InputError:
    return InputError(f"{file.name}: {key} {shown(value)} cannot be repacked: {works}; or give the unquantized model")
