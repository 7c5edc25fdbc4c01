"""What a checkpoint folder states in config.json, quant_cfg.json and enginesmith.json: read in one place, whoever asks.

No tensor is read, and no PyTorch needed. Sizes, mapping and quantization are read of any architecture; the rest of
config.json is known for the families that this project converts.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import InputError, printable
from ...files.disk import read_json, shown_path
from ...files.reader import LARGEST, Reader
from ...models.dimensions import families_of, family_of
from ...models.families import FAMILIES
from ...models.family import Family
from ...models.model import Model, Sizes
from ...quantize.precision import Precision
from .config import model_of_checkpoint, read_sizes
from .formats.base import Engine
from .keys import check_mapping
from .manifest import CONFIG, QUANT_CFG, read_manifest, windows_of
from .mixture import MIXED_PRECISION
from .quant_config import algorithm_of, check_quantization, read_precision, read_quant_cfg
from .ranks import Mapping

DTYPES = ("float16", "bfloat16", "float32")
REQUIRED = ("architecture", "dtype", "hidden_size", "num_hidden_layers", "num_attention_heads")
MOST_RANKS = 1024


class Stated:
    """A checkpoint's configuration.

    Attributes:
        config: config.json.
        dtype: the engine's.
        sizes: of the model, for any architecture.
        positions: max_position_embeddings.
        algorithm, kv_cache: QuantAlgo names, or None.
        algorithms: those of the layers, more than one where algorithm is MIXED_PRECISION.
        embedding_axis: the axis along which the ranks of a stage share the embedding; None where each holds it whole.
        family, model: None for an architecture that this project does not convert.
        manifest: how this project made it, where it did.
        sliding_window: attention window of all layers in tokens, or None.
        windows: of layers that have different ones, going round; empty otherwise.

    Raises:
        InputError: a file that cannot be read, or that says what no build could use.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{shown_path(self.folder)} is not a folder")
        self.config = config = read_json(self.folder / CONFIG)
        said = Reader(config)
        for key in REQUIRED:
            if not said.has(key):
                raise InputError(f"{self.folder}/{CONFIG}: no {key} in it; is this a TensorRT-LLM checkpoint?")
        self.architecture = said.text("architecture")
        self.dtype: str = said.choice("dtype", DTYPES)
        self.logits_dtype: str = said.choice("logits_dtype", DTYPES[::2], "float32")
        known = any(self.architecture in family.architectures for family in FAMILIES)
        self.family: Family | None = family_of(self.architecture, said) if known else None
        quantization = said.section("quantization")
        check_quantization(quantization)
        self.algorithm = algorithm_of(quantization, "quant_algo")
        self.kv_cache = algorithm_of(quantization, "kv_cache_quant_algo")
        self.algorithms: tuple[str | None, ...] = (self.algorithm,)
        if self.algorithm == MIXED_PRECISION:
            self.algorithms = named_algorithms(self.folder)
        self.sizes: Sizes = read_sizes(said)
        self.positions = said.integer("max_position_embeddings", LARGEST)
        self.mapping = read_mapping(said.section("mapping"), self.sizes.num_hidden_layers)
        self.embedding_axis = self._embedding_axis(said)
        self.model: Model | None = None if self.family is None else model_of_checkpoint(config)
        if self.model is not None:
            self.family, self.positions = self.model.family, self.model.max_position_embeddings
            self.mapping.check(self.model)
        self.stages = self.mapping.stages(self.sizes.num_hidden_layers)
        self.manifest = read_manifest(self.folder)
        self.manifest.check_files(self.mapping.world_size, self.algorithm == MIXED_PRECISION)
        windows = self._windows(said.section("runtime_defaults"))
        self.sliding_window = windows[0] if len(windows) == 1 else None
        self.windows = windows if len(windows) > 1 else ()
        if self.model is not None and self.windows:
            self.model = replace(self.model, sliding_window=self.windows[0], window_pattern=len(self.windows))

    def rank_file(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.safetensors"

    def read_precision(self) -> Precision:
        """The schemes of the layers.

        Raises:
            InputError: a family or an algorithm that this project does not convert, or a mixture that does not work.
        """
        families_of(self.architecture)
        assert self.model is not None
        return read_precision(self.folder, self.config, self.model, self.stages)

    @property
    def engine(self) -> Engine:
        return Engine(self.dtype, self.manifest.packed_for_sm or Engine.sm)

    def _embedding_axis(self, said: Reader) -> int | None:
        """What use_parallel_embedding and its axis mean for this mapping."""
        ranks = self.mapping.tp_size
        parallel = said.flag("use_parallel_embedding") or (self.family is not None and self.family.cuts_embedding)
        axis = said.integer("embedding_sharding_dim", 0, least=0, largest=1)
        shared = self.mapping.pp_size == 1 and (ranks == 1 or (parallel and axis == 0))
        if said.flag("share_embedding_table") and not shared:
            raise said.wrong("share_embedding_table", "false with this mapping: ranks hold different parts")
        if axis == 1 and parallel and self.sizes.hidden_size % ranks:
            raise said.wrong("embedding_sharding_dim", f"0: {ranks} ranks do not divide hidden_size")
        return axis if parallel and ranks > 1 else None

    def _windows(self, defaults: Reader) -> tuple[int | None, ...]:
        """The windows that the manifest states, or that are the runtime's default; several go round the layers."""
        defaults.check_keys(("max_attention_window", "sink_token_length"))
        if defaults.has("sink_token_length"):
            raise defaults.wrong("sink_token_length", "null; attention sinks are not supported")
        made = self.manifest.windows or ((self.manifest.sliding_window,) if self.manifest.sliding_window else ())
        made = made or (() if self.model is None else self.model.windows)
        stated = windows_of(defaults, "max_attention_window")
        stated = stated[:1] if len(set(stated)) == 1 else stated
        if stated and None in stated:
            raise defaults.wrong("max_attention_window", "null, or a list of windows in tokens")
        if len(stated) > 1 and not made:
            raise defaults.wrong("max_attention_window", "null, or a list of one window for all layers")
        if len(stated) == 1 and made not in ((), stated):
            raise defaults.wrong("max_attention_window", f"{made[0]} as in enginesmith.json")
        return made or stated


def read_mapping(parallel: Reader, layers: int) -> Mapping:
    """The section "mapping".

    Raises:
        InputError: a mapping that TensorRT-LLM would refuse, or that this project does not know.
    """
    check_mapping(parallel)
    if parallel.integer("cp_size", 1) != 1:
        raise parallel.wrong("cp_size", "1: context parallelism is not supported; convert without it")
    tp, pp = (parallel.integer(name, 1, largest=MOST_RANKS) for name in ("tp_size", "pp_size"))
    if parallel.integer("world_size", tp * pp) != tp * pp:
        raise InputError(f"{CONFIG}: world_size {parallel.values['world_size']} is not tp_size * pp_size = {tp * pp}")
    check_experts(parallel, tp)
    if layers % pp:
        raise InputError(f"{CONFIG}: {layers} layers cannot be cut into {pp} equal stages")
    cut, dealt = (parallel.integer(f"moe_{name}_size", -1, least=-1) for name in ("tp", "ep"))
    return Mapping(tp, pp, dealt if dealt != -1 else tp // cut if cut != -1 else 1)


def check_experts(parallel: Reader, tp: int) -> None:
    """Raise InputError unless experts and attention are spread over exactly the tensor parallel ranks; -1 is any."""
    shares = {name: parallel.integer(f"moe_{name}_size", -1, least=-1) for name in ("tp", "ep", "cluster")}
    known = [size for size in shares.values() if size != -1]
    product = math.prod(known)
    if product == 0 or tp % product or (-1 not in (shares["tp"], shares["ep"]) and product != tp):
        raise InputError(f"{CONFIG}: mapping's moe_tp_size, moe_ep_size and moe_cluster_size must make tp_size {tp}")
    for name, wanted in (("attn_tp_size", tp), ("attn_cp_size", 1)):
        if parallel.integer(name, -1, least=-1) not in (-1, wanted):
            raise parallel.wrong(name, f"{wanted} here")


def named_algorithms(folder: Path) -> tuple[str | None, ...]:
    """The QuantAlgo names in a mixed checkpoint's quant_cfg.json."""
    entries: dict[str, Any] = read_quant_cfg(folder)["quantized_layers"]
    readers = (Reader(entry, f"{QUANT_CFG}: {printable(name, 80)}") for name, entry in entries.items())
    return tuple(dict.fromkeys(algorithm_of(entry, "quant_algo") for entry in readers))
