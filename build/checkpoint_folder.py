"""A checkpoint as a build sees it: sizes, mapping, quantization; no tensor is read and no PyTorch needed.

Any architecture that trtllm-build reads can be described; the plugins of each layer are known for the families
that this project converts.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from ..convert.architectures import COLUMNS, FAMILIES, Family
from ..convert.errors import InputError, shown
from ..convert.files import (
    DTYPE_NAMES,
    MANIFEST,
    headers,
    manifest_problems,
    read_json,
    read_manifest,
    sha256,
    text_digest,
)
from ..convert.layout import Mapping, rank_size, rank_tensors
from ..convert.model import MOST_LAYERS, model_of_checkpoint
from ..convert.precision import MIXED_PRECISION, Precision
from ..convert.quant_config import QUANT_CFG, read_precision, read_quant_cfg
from ..convert.reader import Reader
from ..convert.scheme import SCHEMES

DTYPES = ("float16", "bfloat16", "float32")
# QuantConfig of 0.16 to 1.2; another key is an error when the checkpoint is loaded.
QUANTIZATION_KEYS = {
    "quant_algo",
    "kv_cache_quant_algo",
    "group_size",
    "smoothquant_val",
    "clamp_val",
    "use_meta_recipe",
    "has_zero_point",
    "pre_quant_scale",
    "exclude_modules",
    "mamba_ssm_cache_dtype",
    "quantized_layers",
}
MOST_RANKS = 1024


class CheckpointFolder:
    """What config.json states and how large each rank's file is.

    Attributes:
        algorithm, kv_cache: QuantAlgo names, or None.
        algorithms: those of the layers, more than one where algorithm is MIXED_PRECISION.
        rank_bytes: size of each rank's file.
        family: the model family, or None for one that this project does not convert.

    Raises:
        InputError: config.json or a rank's file is missing, or holds what no build could use.
    """

    def __init__(self, folder: str | Path, flag_name: str = "--checkpoint_dir"):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{flag_name}: {self.folder} is not a folder")
        self.config = config = read_json(self.folder / "config.json")
        for key in ("architecture", "dtype", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            if key not in config:
                raise InputError(f"{self.folder}/config.json: no {key} in it; is this a TensorRT-LLM checkpoint?")
        self.architecture = str(config["architecture"])
        self.dtype = str(config["dtype"])
        self.logits_dtype = str(config.get("logits_dtype", "float32"))
        said = Reader(config)
        quantization = said.section("quantization")
        quantization.check_keys(QUANTIZATION_KEYS)
        for key, value, words in (("dtype", self.dtype, DTYPES), ("logits_dtype", self.logits_dtype, DTYPES[::2])):
            if value not in words:
                raise InputError(f"{self.folder}/config.json: {key} {shown(value)} is not one of {', '.join(words)}")
        self.algorithm: str | None = name_or_none(quantization.values, "quant_algo")
        self.kv_cache: str | None = name_or_none(quantization.values, "kv_cache_quant_algo")
        self.layers = said.integer("num_hidden_layers", largest=MOST_LAYERS)
        self.hidden_size = said.integer("hidden_size")
        self.heads = said.integer("num_attention_heads")
        self.kv_heads = said.integer("num_key_value_heads", self.heads)
        self.head_size = said.integer("head_size", self.hidden_size // self.heads)
        self.intermediate_size = said.integer("intermediate_size", 4 * self.hidden_size)
        if self.heads % self.kv_heads:
            raise InputError(f"config.json: {self.heads} heads are no multiple of {self.kv_heads} KV heads")
        self.vocab_size = said.integer("vocab_size")
        self.parallel_embedding = said.flag("use_parallel_embedding")
        self.positions = said.integer("max_position_embeddings", 2**31)
        parallel = said.section("mapping")
        self.mapping = Mapping(
            parallel.integer("tp_size", 1, largest=MOST_RANKS), parallel.integer("pp_size", 1, largest=MOST_RANKS)
        )
        self.world_size = self.mapping.world_size
        self.check_ranks(parallel)
        self.rank_bytes = [self.rank_file(rank).stat().st_size for rank in range(self.world_size)]
        self.algorithms: tuple[str | None, ...] = (self.algorithm,)
        if self.algorithm == MIXED_PRECISION:
            self.algorithms = named_algorithms(self.folder)
        self.family: Family | None = next((f for f in FAMILIES if self.architecture in f.architectures), None)

    def rank_file(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.safetensors"

    def layers_of(self, rank: int) -> range:
        """The decoder layers on one rank."""
        return self.mapping.stages(self.layers)[rank // self.mapping.tp_size]

    @cached_property
    def precision(self) -> Precision | None:
        """The schemes of the layers, for a family and algorithms that this project converts."""
        if self.family is None or not set(self.algorithms) <= {None, *SCHEMES}:
            return None
        stages = self.mapping.stages(self.layers)
        return read_precision(
            self.folder, self.config, model_of_checkpoint(self.config), stages, self.packed_for_sm or 80
        )

    @property
    def uniform(self) -> bool:
        """Whether all layers are quantized alike."""
        return self.precision is None or len(self.precision.schemes) == 1

    def layer_algorithms(self, layer: int) -> dict[str, str | None]:
        """The QuantAlgo of each linear of a decoder layer of a known family, by its name inside the layer."""
        assert self.family is not None
        if self.precision is None:
            return {linear.name: self.algorithm for linear in self.family.linears}
        schemes = self.precision.layer(layer)
        return {linear: schemes[group.name].algo for group in self.family.groups for linear in group.linears}

    def linear_sizes(self) -> list[tuple[str, int, int]]:
        """(name, out_features, in_features) of a layer's linears on one rank, for a known family."""
        model, tp = model_of_checkpoint(self.config), self.mapping.tp_size
        sizes = []
        for linear in model.family.linears:
            cut = rank_size(linear, model, tp)
            whole_out, whole_in = sum(model.out_features(linear.name)), model.dimension(linear.in_features)
            sizes.append((linear.name, *((whole_out, cut) if linear.cut == COLUMNS else (cut, whole_in))))
        return sizes

    def check_ranks(self, parallel: Reader) -> None:
        """Raise InputError unless there is exactly one file for each rank of the mapping."""
        where = f"{self.folder}/config.json"
        if parallel.integer("cp_size", 1) != 1:
            raise InputError(f"{where}: context parallelism (cp_size) is not supported; convert with cp_size 1")
        stated = parallel.integer("world_size", self.world_size)
        if stated != self.world_size:
            raise InputError(f"{where}: world_size {stated} is not tp_size * pp_size = {self.world_size}")
        if self.layers % self.mapping.pp_size:
            raise InputError(f"{where}: {self.layers} layers cannot be cut into {self.mapping.pp_size} equal stages")
        names = {path.name for path in self.folder.glob("rank*.safetensors") if path.is_file()}
        found = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"rank(\d+)\.safetensors", name)))
        if found != list(range(self.world_size)):
            tp, pp = self.mapping.tp_size, self.mapping.pp_size
            raise InputError(
                f"{self.folder}: tp_size {tp} * pp_size {pp} needs ranks 0 to {self.world_size - 1}, "
                f"there are files for {', '.join(map(str, found)) or 'none'}; convert again with the mapping you want"
            )

    def check_structure(self) -> None:
        """Raise InputError unless every rank's header names the tensors that config.json implies.

        Only for what this project converts; other checkpoints are left to trtllm-build.
        """
        for rank in range(self.world_size):
            found = {name: (shape, dtype) for name, shape, dtype in headers(self.rank_file(rank))}
            if self.precision is None:
                continue
            wanted = rank_tensors(self.precision, self.mapping, rank, self.dtype)
            for name, (shape, dtype) in wanted.items():
                if name not in found:
                    raise InputError(f"rank{rank}.safetensors: tensor {name} is missing; run enginesmith verify")
                if found[name] != (shape, DTYPE_NAMES[dtype]):
                    raise InputError(
                        f"rank{rank}.safetensors: tensor {name} is {found[name][1]} {found[name][0]}, config.json "
                        f"implies {DTYPE_NAMES[dtype]} {shape}"
                    )

    def check_manifest(self, every_file: bool) -> None:
        """Raise InputError where a file is not the one that the conversion recorded.

        Args:
            every_file: hash them all; otherwise only the small ones and those younger than the manifest.
        """
        path = self.folder / MANIFEST
        made = path.stat().st_mtime_ns if path.exists() else 0
        problems = manifest_problems(
            self.folder, lambda file: every_file or file.suffix == ".json" or changed_since(file, made)
        )
        if problems:
            raise InputError(f"{self.folder}: {problems[0]}; convert again, or remove {MANIFEST} to build it as it is")

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the configuration and of every rank's file: as the manifest recorded them, else computed now."""
        mixed = [QUANT_CFG] if self.algorithm == MIXED_PRECISION else []
        names = ["config.json", *mixed, *(self.rank_file(rank).name for rank in range(self.world_size))]
        recorded = Reader(read_manifest(self.folder), MANIFEST).section("files").values
        if all(isinstance(recorded.get(name), str) for name in names):
            return {name: recorded[name] for name in names}
        with ThreadPoolExecutor() as pool:
            return dict(zip(names, pool.map(sha256, [self.folder / name for name in names]), strict=True))

    def digest(self) -> str:
        """What identifies its content."""
        return text_digest(self.hashes())

    @property
    def packed_for_sm(self) -> int | None:
        """The SM that weight-only integers were arranged for at conversion; None where the layout fits any."""
        value = read_manifest(self.folder).get("packed_for_sm")
        return value if isinstance(value, int) else None


def changed_since(path: Path, moment: int) -> bool:
    return not path.is_file() or path.stat().st_mtime_ns > moment


def named_algorithms(folder: Path) -> tuple[str | None, ...]:
    """The QuantAlgo names in a mixed checkpoint's quant_cfg.json."""
    entries = read_quant_cfg(folder)["quantized_layers"].values()
    return tuple(dict.fromkeys(name_or_none(entry, "quant_algo") for entry in entries if isinstance(entry, dict)))


def name_or_none(quantization: dict[str, Any], key: str) -> str | None:
    name = Reader(quantization, prefix="quantization.").text_or_none(key)
    return None if name == "NO_QUANT" else name
