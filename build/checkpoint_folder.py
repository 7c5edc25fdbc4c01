"""A checkpoint as a build sees it: what it states, and the files of its ranks; no tensor is read, no PyTorch needed.

Any architecture that trtllm-build reads can be described; the plugins of each layer are known for the families
that this project converts.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from ..convert.errors import InputError, shown
from ..convert.files.disk import DTYPE_NAMES, MANIFEST, sha256, text_digest
from ..convert.files.shard import Shard
from ..convert.models.pieces import COLUMNS
from ..convert.quantize.precision import Precision
from ..convert.targets.trtllm.formats import SCHEMES
from ..convert.targets.trtllm.layout import rank_tensors, rotary_tables
from ..convert.targets.trtllm.manifest import CONFIG, QUANT_CFG
from ..convert.targets.trtllm.mixture import MIXED_PRECISION
from ..convert.targets.trtllm.ranks import rank_size
from ..convert.targets.trtllm.stated import Stated

# (shape, dtype) of tensors, by name.
Forms = dict[str, tuple[list[int], str]]


class CheckpointFolder(Stated):
    """What a checkpoint states and how large each rank's file is.

    Attributes:
        rank_bytes: size of each rank's file.

    Raises:
        InputError: config.json or a rank's file is missing, or holds what no build could use.
    """

    def __init__(self, folder: str | Path, flag_name: str = "--checkpoint_dir"):
        if not Path(folder).is_dir():
            raise InputError(f"{flag_name}: {folder} is not a folder")
        super().__init__(folder)
        self.world_size = self.mapping.world_size
        self.check_ranks()
        self.rank_bytes = [self.rank_file(rank).stat().st_size for rank in range(self.world_size)]

    def layers_of(self, rank: int) -> range:
        """The decoder layers on one rank."""
        return self.stages[rank // self.mapping.tp_size]

    @cached_property
    def precision(self) -> Precision | None:
        """The schemes of the layers, for a family and algorithms that this project converts."""
        known = self.family is not None and set(self.algorithms) <= {None, *SCHEMES}
        return self.read_precision() if known else None

    @property
    def uniform(self) -> bool:
        """Whether all layers are quantized alike."""
        return self.precision is None or len(self.precision.schemes) == 1

    def layer_algorithms(self, layer: int) -> dict[str, str | None]:
        """The QuantAlgo of each linear of a decoder layer of a known family, by its name inside the layer."""
        assert self.family is not None
        if self.precision is None:
            return {linear.name: self.algorithm for linear in self.family.linears}
        schemes = self.precision.executed(layer)
        names = {name: scheme.held_as or scheme.name for name, scheme in schemes.items()}
        return {linear: names[group.name] for group in self.family.groups for linear in group.linears}

    def linear_sizes(self) -> list[tuple[str, int, int]]:
        """(name, out_features, in_features) of a layer's linears on one rank, for a known family."""
        model, sizes = self.model, []
        assert model is not None
        for linear in model.family.linears:
            cut = rank_size(linear, model, self.mapping.share(linear, 0)[0])
            whole_out, whole_in = sum(model.out_features(linear.name)), model.dimension(linear.in_features)
            sizes.append((linear.name, *((whole_out, cut) if linear.cut == COLUMNS else (cut, whole_in))))
        return sizes

    def check_ranks(self) -> None:
        """Raise InputError unless there is exactly one file for each rank of the mapping."""
        names = {path.name for path in self.folder.glob("rank*.safetensors") if path.is_file()}
        found = [match[1] for name in sorted(names) if (match := re.fullmatch(r"rank([0-9]+)\.safetensors", name))]
        if sorted(found) != sorted(map(str, range(self.world_size))):
            tp, pp, there = self.mapping.tp_size, self.mapping.pp_size, sorted(found, key=int)[:20]
            raise InputError(
                f"{self.folder}: tp_size {tp} * pp_size {pp} needs ranks 0 to {self.world_size - 1}, "
                f"there are files for {', '.join(there) or 'none'}; convert again with the mapping you want"
            )

    def check_structure(self) -> None:
        """Raise InputError unless every rank's header names the tensors that config.json implies.

        Only for what this project converts; other checkpoints are left to trtllm-build.
        """
        stages: dict[int, Forms] = {}  # the ranks of a stage hold the same tensors
        for rank in range(self.world_size):
            found = Shard(self.rank_file(rank)).forms()
            if self.precision is None:
                continue
            stage = rank // self.mapping.tp_size
            if stage not in stages:
                wanted = rank_tensors(self.precision, self.mapping, rank, self.engine, self.embedding_axis)
                stages[stage] = stored_forms(wanted)
            if found != stages[stage]:
                tables = stored_forms(rotary_tables(self.precision.model))
                check_tensors(self.rank_file(rank).name, found, stages[stage], tables)

    def check_manifest(self, every_file: bool) -> None:
        """Raise InputError where a file is not the one that the conversion recorded.

        Args:
            every_file: hash them all; otherwise only the small ones and those younger than the manifest.
        """
        made = (self.folder / MANIFEST).stat().st_mtime_ns if self.manifest.there else 0
        problems = self.manifest.problems(
            lambda file: every_file or file.suffix == ".json" or changed_since(file, made)
        )
        if problems:
            raise InputError(f"{self.folder}: {problems[0]}; convert again, or remove {MANIFEST} to build it as it is")

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the configuration and of every rank's file: as the manifest recorded them, else computed now."""
        mixed = [QUANT_CFG] if self.algorithm == MIXED_PRECISION else []
        names = [CONFIG, *mixed, *(self.rank_file(rank).name for rank in range(self.world_size))]
        if self.manifest.there:
            return {name: self.manifest.files[name] for name in names}
        with ThreadPoolExecutor() as pool:
            return dict(zip(names, pool.map(sha256, [self.folder / name for name in names]), strict=True))

    def digest(self) -> str:
        """What identifies its content."""
        return text_digest(self.hashes())


def changed_since(path: Path, moment: int) -> bool:
    return not path.is_file() or path.stat().st_mtime_ns > moment


def stored_forms(tensors: Forms) -> Forms:
    """Shapes and safetensors' own names of dtypes."""
    return {name: (shape, DTYPE_NAMES[dtype]) for name, (shape, dtype) in tensors.items()}


def check_tensors(file: str, found: Forms, wanted: Forms, optional: Forms) -> None:
    """Raise InputError for the first tensor of a file that is missing, of another form, or one too many."""
    known = optional | wanted
    for name in sorted(known.keys() | found.keys()):
        if name not in known:
            raise InputError(
                f"{file}: tensor {shown(name)} is not one that config.json implies; run enginesmith verify"
            )
        if name not in found and name in wanted:
            raise InputError(f"{file}: tensor {name} is missing; run enginesmith verify")
        if name in found and found[name] != known[name]:
            there, implied = (f"{dtype} {shape}" for shape, dtype in (found[name], known[name]))
            raise InputError(f"{file}: tensor {name} is {there}, config.json implies {implied}")
