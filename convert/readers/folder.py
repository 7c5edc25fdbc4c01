"""What a folder holds: its configurations and the forms of its tensors; values are read where they matter."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...plugins.lazy import numpy as np
from ..errors import InputError, shown
from ..files.disk import is_there, read_json, shown_path
from ..files.reader import Reader
from ..files.shard import Shard, Stored
from ..sources.weight_files import weight_files
from .values import read

MOST_TENSORS = 1_000_000
# Times that the names of a list are tried on the linears of a folder.
MOST_TRIES = 100_000_000
IN_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,6})\.")
MODELOPT_FILE = "hf_quant_config.json"
FLOATS = ("F16", "BF16", "F32", "F64")
# Last names that only quantized linears have.
MARKS = frozenset(
    ("weight_scale", "weight_scale_inv", "weight_scale_2", "weight_packed", "qweight", "qzeros", "scales", "absmax")
)
CACHE_SCALES = ("k_scale", "v_scale")
# Linears that read one input, and that runtimes make one linear of.
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
LINEARS = frozenset((*(part for parts in FUSED for part in parts), "o_proj", "down_proj", "w2"))


@dataclass(frozen=True)
class Linear:
    """A module with a weight.

    Attributes:
        tensors: where each lies, by last name.
    """

    name: str
    tensors: dict[str, Stored]

    @property
    def last_name(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def quantized(self) -> bool:
        weight = self.tensors.get("weight")
        return not MARKS.isdisjoint(self.tensors) or (weight is not None and weight.dtype not in FLOATS)

    def full_name(self, suffix: str) -> str:
        return f"{self.name}.{suffix}" if self.name else suffix


class Folder:
    """A model as its files describe it.

    Attributes:
        config: config.json; embedded: its quantization_config, empty where there is none.
        beside: the content of hf_quant_config.json; None where there is no such file.
        for_engines: it is a checkpoint of TensorRT-LLM's engine backend, whose tensors are not looked at.
        shards: the file of every tensor.
        linears: those that are quantized; plain: those of decoder layers that are not.

    Raises:
        InputError: no such folder, or files that are no model's.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        if not self.path.is_dir():
            raise InputError(f"{shown_path(self.path)} is not a folder; nothing is downloaded")
        self.config = Reader(read_json(self.path / "config.json"))
        if self.config.has("pretrained_config"):
            raise InputError(f"{shown_path(self.path)} is an engine; enginesmith check-engine tells where it runs")
        self.embedded = self.config.section("quantization_config")
        self.beside = self._beside()
        self.for_engines = self.config.has("architecture") and not self.config.has("architectures")
        self.shards: dict[str, Shard] = {}
        if not self.for_engines:
            self._open_shards()
            self._check_layers()
        modules = self._modules()
        self.linears = [linear for linear in modules if linear.quantized]
        self.plain = [linear for linear in modules if not linear.quantized and linear.last_name in LINEARS]

    @property
    def method(self) -> str:
        """Who has quantized it, as config.json says; empty where it says nothing."""
        stated = self.embedded.text_or_none("quant_method")
        if stated is None:
            return "modelopt" if self.embedded.has("quant_algo") else ""
        return stated.lower()

    @property
    def linear_names(self) -> set[str]:
        """The names of those that are quantized."""
        return {linear.name for linear in self.linears}

    @property
    def smoothed(self) -> list[Linear]:
        """Linears that multiply their input by a factor of their own."""
        return [linear for linear in self.linears if "pre_quant_scale" in linear.tensors]

    @cached_property
    def fused(self) -> list[list[Linear]]:
        """Linears that become one, several of which are there."""
        around = defaultdict[str, dict[str, Linear]](dict)
        for linear in [*self.linears, *self.plain]:
            around[linear.name.rpartition(".")[0]][linear.last_name] = linear
        groups = [[held[part] for part in parts if part in held] for held in around.values() for parts in FUSED]
        return [group for group in groups if len(group) > 1]

    @cached_property
    def cache_scales(self) -> tuple[list[str], list[str]]:
        """The scales of a quantized KV cache: those beside the linears of attention, and those inside them."""
        names = [name for name in self.shards if name.endswith(tuple(f".{scale}" for scale in CACHE_SCALES))]
        inside = [name for name in names if name.split(".")[-2] in ("k_proj", "v_proj")]
        return [name for name in names if name not in set(inside)], inside

    @property
    def has_chat_template(self) -> bool:
        """As Edge-LLM's exporter looks for it."""
        if is_there(self.path / "chat_template.jinja"):
            return True
        if not is_there(self.path / "tokenizer_config.json"):
            return False
        template = read_json(self.path / "tokenizer_config.json").get("chat_template")
        if isinstance(template, list):
            return any(isinstance(one, dict) and one.get("name") == "default" for one in template)
        return isinstance(template, str)

    def values(self, name: str) -> np.ndarray[Any, Any]:
        """The values of one tensor."""
        return read(self.shards[name], name)

    def check_tries(self, said: Reader, key: str, patterns: Iterable[str]) -> None:
        """Raise InputError where trying each pattern on each linear would take long."""
        if len(list(patterns)) * (len(self.linears) + len(self.plain)) > MOST_TRIES:
            raise InputError(f"{said.file}: {said.prefix}{key} has too many patterns for so many linears")

    def _beside(self) -> Reader | None:
        path = self.path / MODELOPT_FILE
        return Reader(read_json(path), MODELOPT_FILE).section("quantization") if is_there(path) else None

    def _open_shards(self) -> None:
        for path in weight_files(self.path, self.config.values):
            shard = Shard(path)
            for name in shard.tensors:
                if name in self.shards:
                    raise InputError(
                        f"{shard.file.name}: tensor {shown(name)} is also in {self.shards[name].file.name}"
                    )
                self.shards[name] = shard
            if len(self.shards) > MOST_TENSORS:
                raise InputError(f"{shown_path(self.path)}: holds more than {MOST_TENSORS:,} tensors")

    def _check_layers(self) -> None:
        """Raise InputError where a whole decoder layer is not there: some runtimes go on without."""
        held = {int(found[1]) for found in map(IN_LAYER.search, self.shards) if found}
        count = self.config.integer_or_none("num_hidden_layers") or 0
        missing = next((index for index in range(count) if index not in held), None)
        if held and missing is not None:
            raise InputError(f"config.json: num_hidden_layers is {count}, but layer {missing} has no tensors")

    def _modules(self) -> list[Linear]:
        held = defaultdict[str, dict[str, Stored]](dict)
        for name, shard in self.shards.items():
            module, dot, suffix = name.rpartition(".")
            if dot and not module:
                continue  # no module is called so, and no runtime looks for it
            held[module][suffix] = shard.tensors[name]
        return [Linear(name, tensors) for name, tensors in held.items()]
