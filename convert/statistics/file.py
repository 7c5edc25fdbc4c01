"""Calibration statistics in one file: gathered once, they quantize a model again without a forward pass.

A safetensors file; its header says what it was made of, its tensors are every layer's statistics by name:

    layers.3.attention.qkv.gram     layers.3.mlp.proj.tokens     layers.3.output_amax     layers.3.key_amax
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..files.disk import DTYPE_NAMES
from ..files.shard import Shard
from ..files.tensors import TensorFile
from ..models.model import Model
from ..numbers.inputs import InputStatistics
from .layer import LayerStatistics
from .wanted import Wanted
from .watch import KEPT_PER_SEQUENCE

# The key of our JSON in the safetensors header, and the version of the layout.
KEY, VERSION = "enginesmith_statistics", 3
CACHE = ("key_amax", "value_amax", "query_amax")
# Beyond what any activation, or product of two, comes to.
LARGEST = 1e30
# Called with each layer's index and statistics.
Save = Callable[[int, LayerStatistics], None]


@dataclass(frozen=True)
class Origin:
    """What statistics were made of; another model, text or choice has other statistics.

    Attributes:
        source: SHA-256 of the model's files, by name.
        text: where the calibration text came from.
        sha256: of the calibration's token ids.
        sequences, tokens_per_sequence: their shape.
        seed: drew the kept tokens, and the rotation.
        dtype: the layers computed in it.
        rotated: the residual stream was.
        has: names of the fields of calibrate.Wanted.
    """

    source: dict[str, str]
    text: str
    sha256: str
    sequences: int
    tokens_per_sequence: int
    seed: int
    dtype: str
    rotated: bool
    has: list[str]

    @property
    def wanted(self) -> Wanted:
        """What was gathered."""
        return Wanted(**dict.fromkeys(self.has, True))

    def difference(self, other: Origin) -> str | None:
        """Why these statistics are not the other's; None where they are, whatever each of them has."""
        if self.source != other.source:
            names = self.source.keys() | other.source.keys()
            name = min(name for name in names if self.source.get(name) != other.source.get(name))
            return f"was made from another model ({name} differs)"
        shape, theirs = (f"{x.sequences} sequences of {x.tokens_per_sequence} tokens" for x in (self, other))
        if self.sha256 != other.sha256:
            return f"was made from another calibration text ({self.text}, {shape}; not {other.text}, {theirs})"
        if self.seed != other.seed:
            return f"was made with --seed {self.seed}, not {other.seed}"
        if self.rotated != other.rotated:
            made, asked = ("--rotate" if rotated else "--no_rotate" for rotated in (self.rotated, other.rotated))
            return f"was made with {made}, which this conversion does not use; save one with {asked} --save_stats"
        return None


class StatisticsFile:
    """Statistics that an earlier conversion saved.

    Raises:
        InputError: no statistics, or a file that is not laid out as its header says.
    """

    def __init__(self, path: str | Path, model: Model, device: torch.device):
        self.path, self.model, self.device = Path(path), model, device
        self.shard = Shard(self.path, "--stats")
        found = {name: (stored.shape, stored.dtype) for name, stored in self.shard.tensors.items()}
        self.origin = read_origin(self.shard)
        expected = {name: (shape, "F32") for name, (shape, _) in layout(model, self.origin).items()}
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                raise InputError(f"--stats: {path}: not of this model (tensor {name} differs)")

    def check(self, origin: Origin) -> None:
        """Raise InputError unless the file has what ``origin`` says a conversion would gather itself."""
        difference = self.origin.difference(origin)
        if difference is not None:
            raise InputError(f"--stats: {self.path} {difference}")
        lacking = self.origin.wanted.lacks(origin.wanted)
        if lacking:
            raise InputError(f"--stats: {self.path} lacks {', '.join(lacking)}; save it again with --save_stats")

    def layer(self, index: int) -> LayerStatistics:
        """The statistics of one layer, on the device."""
        names = one_layer(self.model, self.origin)
        tensors = {name: self.shard.read(f"layers.{index}.{name}").to(self.device) for name in names}
        for name, tensor in tensors.items():
            if not possible(name.rpartition(".")[2], tensor):
                raise InputError(
                    f"--stats: {self.path}: tensor layers.{index}.{name} holds what no calibration gives; save it again"
                )
        return unnamed(tensors, self.model)


def possible(name: str, tensor: torch.Tensor) -> bool:
    """Whether a statistic could have been measured: a finite size, or a symmetric matrix of products."""
    if not (tensor.abs() < LARGEST).all():
        return False
    if name == "gram":
        return bool((tensor.diagonal() >= 0).all()) and torch.equal(tensor, tensor.t())
    return name == "tokens" or bool((tensor >= 0).all())


def layout(model: Model, origin: Origin) -> dict[str, tuple[list[int], str]]:
    """Name -> (shape, dtype) of every tensor in the file."""
    one, layers = one_layer(model, origin), range(model.num_hidden_layers)
    return {f"layers.{i}.{name}": (shape, "float32") for i in layers for name, shape in one.items()}


def one_layer(model: Model, origin: Origin) -> dict[str, list[int]]:
    """Name -> shape of every tensor of one layer."""
    one = {"hidden_amax": [1]}
    wanted = origin.wanted
    kept = origin.sequences * (KEPT_PER_SEQUENCE + 1) if wanted.tokens else 0
    for group in model.family.groups if wanted.inputs else ():
        width = model.dimension(model.family.linear(group.linears[0]).in_features)
        shapes = {"amax": [origin.sequences, width], "tokens": [kept, width], "weight": [kept]}
        shapes |= {"gram": [width, width]} if wanted.gram else {}
        shapes |= {"magnitude": [width]} if wanted.magnitude else {}
        one |= {f"{group.name}.{name}": shape for name, shape in shapes.items()}
    if wanted.outputs:
        one |= {"output_amax": [sum(rows_of(model).values())], "stream_amax": [len(model.family.norms)]}
    if wanted.cache:
        one |= {"key_amax": [model.kv_size], "value_amax": [model.kv_size], "query_amax": [model.query_size]}
    return one


def rows_of(model: Model) -> dict[str, int]:
    """Output channels of every Hugging Face linear of a layer, in the order of ``output_amax``."""
    linears = model.family.linears
    return {part: rows for one in linears for part, rows in zip(one.parts, model.out_features(one.name), strict=True)}


def named(statistics: LayerStatistics, model: Model) -> dict[str, torch.Tensor]:
    """A layer's statistics as float32 tensors, by name inside the layer."""
    tensors = {"hidden_amax": torch.tensor([statistics.hidden_amax])}
    for group, inputs in statistics.inputs.items():
        of_group = {item.name: getattr(inputs, item.name) for item in fields(inputs)}
        tensors |= {f"{group}.{name}": tensor for name, tensor in of_group.items() if tensor is not None}
    if statistics.output_amax:
        tensors["output_amax"] = torch.cat([statistics.output_amax[part] for part in rows_of(model)])
        tensors["stream_amax"] = torch.tensor([statistics.stream_amax[norm.name] for norm in model.family.norms])
    for name in CACHE:
        if getattr(statistics, name) is not None:
            tensors[name] = getattr(statistics, name)
    return tensors


def unnamed(tensors: dict[str, torch.Tensor], model: Model) -> LayerStatistics:
    """The inverse of ``named``."""
    inputs = {}
    for group in model.family.groups:
        prefix = f"{group.name}."
        of_group = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
        if of_group:
            inputs[group.name] = InputStatistics(**of_group)
    seen = LayerStatistics(inputs, hidden_amax=float(tensors["hidden_amax"]))
    if "output_amax" in tensors:
        rows = rows_of(model)
        seen.output_amax = dict(zip(rows, tensors["output_amax"].split(list(rows.values())), strict=True))
        seen.stream_amax = dict(
            zip((norm.name for norm in model.family.norms), tensors["stream_amax"].tolist(), strict=True)
        )
    seen.key_amax, seen.value_amax, seen.query_amax = (tensors.get(name) for name in CACHE)
    return seen


def read_origin(shard: Shard) -> Origin:
    """What the header says.

    Raises:
        InputError: it is no statistics file, or one of another version.
    """
    path, text = shard.file.path, shard.metadata.get(KEY)
    if text is None:
        raise InputError(f"--stats: {path} holds no statistics; make it with enginesmith convert --save_stats")
    try:
        made = json.loads(text)
        if made.pop("version") != VERSION:
            raise InputError(f"--stats: {path} is of another version; make it again with --save_stats")
        origin = Origin(**made)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--stats: {path}: its header is not readable") from None
    if not well_formed(origin):
        raise InputError(f"--stats: {path}: its header is not readable")
    return origin


def well_formed(origin: Origin) -> bool:
    """Whether every field of an untrusted header is of its type."""
    kinds: dict[str, type] = {"source": dict, "text": str, "sha256": str, "dtype": str, "rotated": bool, "has": list}
    kinds |= dict.fromkeys(("sequences", "tokens_per_sequence", "seed"), int)
    known = {item.name for item in fields(Wanted)}
    return (
        all(type(getattr(origin, name)) is kind for name, kind in kinds.items())
        and all(isinstance(digest, str) for digest in origin.source.values())
        and all(isinstance(name, str) and name in known for name in origin.has)
        and 0 < origin.sequences < 2**31
        and 0 < origin.tokens_per_sequence < 2**31
        and origin.dtype in DTYPE_NAMES
    )


def write_layer(file: TensorFile, model: Model, index: int, statistics: LayerStatistics) -> None:
    for name, tensor in named(statistics, model).items():
        file.write(f"layers.{index}.{name}", tensor)


@contextmanager
def saving(path: Path, flag: str, model: Model, origin: Origin) -> Iterator[Save]:
    """A function that stores one layer; the file is whole when the block ends well.

    Args:
        flag: the option that wants the file, for messages.
    """
    header: dict[str, Any] = {"version": VERSION, **asdict(origin)}
    file = TensorFile(path, layout(model, origin), {KEY: json.dumps(header)}, flag)
    try:
        yield partial(write_layer, file, model)
        file.close()
    finally:
        file.abandon()
