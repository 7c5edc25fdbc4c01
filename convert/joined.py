"""A checkpoint read back: ranks put together again, one layer at a time."""

from __future__ import annotations

from pathlib import Path

import torch

from .errors import InputError, shown
from .files import read_json, read_manifest
from .forward import rotary_frequencies
from .layout import Mapping, Tensor, check_kernels, layer_tensors
from .model import Model, model_of_checkpoint
from .precision import LAYER
from .quant_config import read_precision
from .reader import Reader
from .shard import Shard


class Checkpoint:
    """A TensorRT-LLM checkpoint folder that this project knows how to execute.

    Attributes:
        model, precision, mapping, dtype: what config.json states.
        stages: the layers of each pipeline stage.

    Raises:
        InputError: not such a folder, or an architecture or quantization that is not supported.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.shards: dict[int, Shard] = {}  # opened once, when they are first read
        self.config = read_json(self.folder / "config.json")
        self.model: Model = model_of_checkpoint(self.config)
        parallel = Reader(self.config).section("mapping")
        self.mapping = Mapping(parallel.integer("tp_size", 1), parallel.integer("pp_size", 1))
        self.mapping.check(self.model)
        if parallel.integer("world_size", self.mapping.world_size) != self.mapping.world_size:
            raise InputError(f"config.json: world_size {parallel.values['world_size']} is not tp_size * pp_size")
        self.stages = self.mapping.stages(self.model.num_hidden_layers)
        self.precision = read_precision(self.folder, self.config, self.model, self.stages, arranged_for(self.folder))
        check_kernels(self.precision, self.mapping)
        self.dtype = str(self.config.get("dtype"))
        if self.dtype not in ("float16", "bfloat16"):
            raise InputError(f"{self.folder}/config.json: dtype {shown(self.dtype)} is not supported")

    def rank_file(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.safetensors"

    def read(self, rank: int, name: str) -> torch.Tensor:
        """One tensor of a rank's file, as it is stored."""
        shard = self.shards.get(rank)
        if shard is None or not shard.file.is_current():
            shard = self.shards[rank] = Shard(self.rank_file(rank))
        return shard.read(name)

    def layer(self, index: int) -> dict[str, torch.Tensor]:
        """A layer's whole tensors, by TensorRT-LLM name inside the layer.

        Raises:
            InputError: ranks disagree about something that more than one of them holds.
        """
        stage = next(number for number, layers in enumerate(self.stages) if index in layers)
        prefix = LAYER.format(i=index - self.stages[stage].start)
        ranks = range(stage * self.mapping.tp_size, (stage + 1) * self.mapping.tp_size)
        return {
            name: self.join(spec, [spec.storage.read(self.read(rank, prefix + name)) for rank in ranks], prefix + name)
            for name, spec in layer_tensors(self.model, self.precision.layer(index), self.dtype).items()
        }

    def join(self, spec: Tensor, pieces: list[torch.Tensor], name: str) -> torch.Tensor:
        """Undo ``layout.cut``: put every piece's channels back in their place."""
        if len(pieces) == 1:
            return pieces[0]
        if pieces[0].dtype == torch.float8_e4m3fn:  # PyTorch moves its bytes, but not its values
            return self.join(spec, [piece.view(torch.int8) for piece in pieces], name).view(torch.float8_e4m3fn)
        if spec.cut_axis is None or spec.linear is None:
            if not all(torch.equal(piece, pieces[0]) for piece in pieces):
                raise InputError(f"{self.folder}: ranks disagree about {name}")
            return pieces[0]
        axis = spec.axes.index(spec.cut_axis)
        whole = pieces[0].new_zeros(spec.shape(self.model))
        places = [spec.places(self.model, len(pieces), tp_rank) for tp_rank in range(len(pieces))]
        for place, piece in zip(places, pieces, strict=True):
            whole.index_copy_(axis, place, piece)
        if not all(torch.equal(whole.index_select(axis, p), x) for p, x in zip(places, pieces, strict=True)):
            raise InputError(f"{self.folder}: ranks that share heads disagree about {name}")
        return whole

    def rotary_frequencies(self) -> torch.Tensor:
        """Inverse frequencies that an engine rotates with, float32 [head_size / 2]: the checkpoint's own table, or
        what TensorRT-LLM computes at load."""
        if self.model.brings_rotary_tables:
            return self.read(0, "rotary_inv_freq")
        return rotary_frequencies(self.model)[0]

    def embedding(self) -> torch.Tensor:
        """[vocab_size, hidden_size]."""
        return self.same(range(self.mapping.tp_size), "transformer.vocab_embedding.weight")

    def final_norm(self) -> torch.Tensor:
        """[hidden_size]."""
        ranks = range(self.mapping.world_size - self.mapping.tp_size, self.mapping.world_size)
        return self.same(ranks, "transformer.ln_f.weight")

    def same(self, ranks: range, name: str) -> torch.Tensor:
        """A tensor that these ranks all hold whole."""
        first = self.read(ranks[0], name)
        if not all(torch.equal(first, self.read(rank, name)) for rank in ranks[1:]):
            raise InputError(f"{self.folder}: ranks disagree about {name}")
        return first

    def head(self) -> torch.Tensor:
        """[vocab_size, hidden_size], padding rows removed."""
        ranks = range(self.mapping.world_size - self.mapping.tp_size, self.mapping.world_size)
        return torch.cat([self.read(rank, "lm_head.weight") for rank in ranks])[: self.model.vocab_size]


def arranged_for(folder: Path) -> int:
    """The GPU generation that the manifest says packed integers are arranged for; SM 80 to 89 where none says so."""
    value = read_manifest(folder).get("packed_for_sm")
    return value if isinstance(value, int) else 80
