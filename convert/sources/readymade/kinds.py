"""Folders that others have quantized: what one of their linears consists of, and what it becomes, to the bit.

    AutoGPTQ, GPTQModel                  ->  W4A16_GPTQ, W8A16_GPTQ
    AutoAWQ (gemm) with zero points      ->  W4A16_GPTQ: AWQ's own format has no zeros
    AutoAWQ (gemm) without               ->  W4A16_AWQ, whose prequant_scaling_factor is 1
    compressed-tensors (pack-quantized)  ->  W4A16_GPTQ, W8A16_GPTQ

Integers and scales are kept as they are. GPTQ's format holds -zero * scale, rounded to the engine's dtype: each zero
point can be told from it, and symmetric weights have none. A group of kernels' 64 or 128 channels may repeat the scale
of a larger one, so groups of any multiple of 64, and whole rows, are exact too. Other folders (readymade_scaled) are
read for their dequantized weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ....plugins.lazy import torch
from ....plugins.weight_only_groupwise_quant_matmul import GROUP_SIZES
from ...errors import InputError
from ...files.reader import Reader
from ...numbers.quantized import QuantizedLinear
from .unpacking import Quantized, Tensors

WHOLE_ROW = -1
ENGINE_DTYPES = ("float16", "bfloat16")
SCALES = ("F16", "BF16", "F32")
# Of a quantized KV cache, in attention or in its linears.
CACHE_SCALES = ("k_scale", "v_scale", "q_scale")
# What a KV cache is quantized to: known here, or not.
FP8, OTHER = "FP8", "other"
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
class LeftOut:
    """A statement of a configuration about which linears are in floating point.

    Attributes:
        key: where it says so, with its file.
        holds: whether it says so of a linear, by full name.
    """

    key: str
    holds: Callable[[str], bool]


def cache_of(said: Reader, key: str) -> str | None:
    """What a statement about the KV cache means."""
    stated = said.values.get(key)
    if not stated:
        return None
    if stated == FP8:
        return FP8
    if isinstance(stated, dict) and stated.get("type") == "float" and stated.get("num_bits") == 8:
        return OTHER if stated.get("dynamic") else FP8
    return OTHER


@dataclass(frozen=True)
class Inputs:
    """How a folder has the inputs of its linears rounded.

    Attributes:
        kind: "int8", "fp8", or None for inputs in floating point.
        static: by one scale that it holds; else by one a token, found at run time.
        symmetric: 0 is in the middle of the range.
    """

    kind: str | None = None
    static: bool = False
    symmetric: bool = True


@dataclass(frozen=True)
class ReadyMade(ABC):
    """How a folder's linears are quantized.

    Attributes:
        file: the file that says so.
        method: the tool or format, for messages and the manifest.
        bits: of a weight.
        group_size: input channels that share a scale; WHOLE_ROW where all do.
        left_out: what it says about linears in floating point.
        cache_scales: attention may hold the scales of a quantized KV cache beside its linears.
        cache: what the KV cache is quantized to when the folder is executed: None for nothing, "FP8", or OTHER.
    """

    file: Path = field(compare=False)
    method: str
    bits: int
    group_size: int
    left_out: tuple[LeftOut, ...] = field(default=(), compare=False, kw_only=True)
    cache_scales: bool = field(default=False, kw_only=True)
    cache: str | None = field(default=None, kw_only=True)

    def of(self, linear: str) -> ReadyMade:
        """How one linear is quantized, by its full name."""
        return self

    @property
    def inputs(self) -> Inputs | None:
        """How inputs are rounded; None where it is not known here."""
        return Inputs()

    @abstractmethod
    def quantized(self, tensors: Tensors, name: str) -> QuantizedLinear:
        """One linear as its runtime computes with it.

        Raises:
            InputError: its tensors contradict each other or the configuration.
        """

    @abstractmethod
    def kept(self, tensors: Tensors, name: str, group_size: int, dtype: torch.dtype) -> QuantizedLinear:
        """The same for an engine of this dtype, its integers untouched.

        Raises:
            InputError: the engine would not compute with them.
        """

    @property
    @abstractmethod
    def algo(self) -> str | None:
        """TensorRT-LLM's QuantAlgo that holds these weights exactly; None where they can only be requantized."""

    @abstractmethod
    def tensors(self, name: str, out_features: int, in_features: int) -> dict[str, Expected]:
        """What a linear [out, in] consists of, by last name.

        Raises:
            InputError: groups do not cut its input evenly.
        """

    @abstractmethod
    def weight(self, tensors: Tensors, name: str) -> torch.Tensor:
        """The dequantized weight of one linear, float32 [out, in].

        Raises:
            InputError: its tensors contradict each other or the configuration.
        """

    def check(self, tensors: Tensors, name: str) -> str | None:
        """Hold a linear's small tensors, ``small`` of them, against the configuration; returns what is worth a note.

        Raises:
            InputError: they contradict each other.
        """
        return None

    @property
    def small(self) -> tuple[str, ...]:
        """The last names of the tensors that ``check`` looks at."""
        return ()

    def check_left_out(self, linear: str) -> None:
        """Raise InputError if the configuration says that a quantized linear is in floating point."""
        for said in self.left_out:
            if said.holds(linear):
                raise InputError(
                    f"{said.key} leaves {linear} in floating point, but its tensors are quantized; correct it"
                )

    def engine_group(self, asked: int | None) -> int:
        """The group size of the checkpoint: the one asked for, or the largest that cuts the folder's groups evenly.

        Raises:
            InputError: the one asked for does not.
        """
        works = [size for size in GROUP_SIZES if self.group_size == WHOLE_ROW or self.group_size % size == 0]
        if not works:
            raise InputError(
                f"{self.file.name}: group_size {self.group_size} cannot be repacked: multiples of "
                f"{min(GROUP_SIZES)}, and {WHOLE_ROW}, do; {ANEW}"
            )
        if asked is not None and asked not in works:
            raise InputError(
                f"--group_size {asked} would mix the folder's scales, one every {self.group_size} channels; "
                f"use {' or '.join(map(str, works))}, or {ANEW}"
            )
        return asked or max(works)

    def full_names(self, linear: str, out_features: int, in_features: int) -> dict[str, Expected]:
        """``tensors`` by full name."""
        return {f"{linear}.{suffix}": held for suffix, held in self.tensors(linear, out_features, in_features).items()}

    def cache_names(self, linear: str) -> dict[str, Expected]:
        """The scales of a quantized KV cache that may lie in a linear, quantized or not, or in the module around it."""
        if not self.cache_scales:
            return {}
        number = Expected(tuple((dtype, shape) for dtype in SCALES for shape in ([], [1])), optional=True)
        places = linear, linear.rpartition(".")[0]
        return {f"{place}.{suffix}": number for place in places for suffix in CACHE_SCALES}

    def groups(self, name: str, in_features: int) -> int:
        """Scales along one row of a linear."""
        group = in_features if self.group_size == WHOLE_ROW else self.group_size
        if in_features % group:
            raise InputError(
                f"{self.file.name}: group_size {group} does not divide the {in_features} input channels of {name}; "
                "give the unquantized model"
            )
        return in_features // group


@dataclass(frozen=True)
class Packed(ReadyMade):
    """Integers of 4 or 8 bits in 32-bit words, which TensorRT-LLM's group-wise kernels execute as they are.

    Attributes:
        zero_points: False where the folder promises that there are none.
        reordered: channels are in groups by activation, so that each linear must say which.
    """

    zero_points: bool = True
    reordered: bool = False

    @abstractmethod
    def linear(self, tensors: Tensors, name: str) -> Quantized:
        """The integers, scales and zeros in one linear's tensors."""

    @property
    def algo(self) -> str | None:
        return f"W{self.bits}A16_GPTQ"

    def weight(self, tensors: Tensors, name: str) -> torch.Tensor:
        return self.linear(tensors, name).dequantize()

    def quantized(self, tensors: Tensors, name: str) -> QuantizedLinear:
        read = self.linear(tensors, name)
        if read.in_order:
            return read.grouped()
        return QuantizedLinear(read.dequantize(), torch.ones(1))

    def kept(self, tensors: Tensors, name: str, group_size: int, dtype: torch.dtype) -> QuantizedLinear:
        return self.exact(self.linear(tensors, name), group_size, dtype)

    def index(self, in_features: int) -> Expected:
        """The group of each input channel."""
        if self.reordered:
            return Expected.of(("I32",), in_features)
        return Expected((("I32", [in_features]), ("I32", [0])), optional=True)

    def check_index(self, index: torch.Tensor | None, name: str, key: str) -> None:
        """Raise InputError unless the groups of input channels are of the stated size, and in order unless the
        configuration says otherwise.

        Args:
            index: int32 [in], absent or empty where groups are in order.
            key: the configuration's word for another order.
        """
        if index is None or not index.numel():
            return
        groups = self.groups(name.rpartition(".")[0], len(index))
        plain = torch.arange(len(index)) // (len(index) // groups)
        if not self.reordered and not torch.equal(index.long(), plain):
            raise InputError(f"{name}: its groups are not in order, but {self.file.name} has no {key}; correct it")
        if index.min() < 0 or index.max() >= groups or not torch.equal(index.long().sort().values, plain):
            raise InputError(f"{name}: does not make {groups} groups of {len(index) // groups} channels each")

    def exact(self, read: Quantized, group_size: int, dtype: torch.dtype) -> QuantizedLinear:
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
        times = weight.values.shape[1] // weight.scale.shape[1] // group_size
        zero = None if weight.zero is None else weight.zero.repeat_interleave(times, 1)
        return QuantizedLinear(weight.values, weight.scale.repeat_interleave(times, 1), zero)

    def no_zeros(self, name: str) -> InputError:
        """The refusal of zero points in a folder that promises to have none."""
        return InputError(f"{name}: holds zero points, but {self.file.name} says that there are none; correct the file")


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
    if requantize:
        return quant
    if ready.algo is None:
        raise InputError(f"{ready.file.name}: {ready.method} weights cannot be kept as they are; {ANEW}")
    if quant in (None, ready.algo):
        return ready.algo
    raise InputError(
        f"--quant {quant}: the folder's {ready.method} weights become {ready.algo} as they are; leave --quant away, "
        f"or {ANEW}"
    )
