"""A checkpoint read back: ranks put together again, one layer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from ....plugins.lazy import torch
from ...errors import InputError, shown
from ...files.shard import Shard
from ...models.encoder_head import EncoderHead, read_head
from ...models.ends import Embedding, Head
from ...models.model import Model
from ...models.rotary import rotary_frequencies
from ...quantize.precision import Precision
from . import token_types
from .layout import check_kernels, is_one, layer_tensors, stored_name
from .ranks import Tensor
from .stated import Stated


class Checkpoint(Stated):
    """A TensorRT-LLM checkpoint folder that this project knows how to execute.

    Attributes:
        model, precision: what its configuration states.

    Raises:
        InputError: not such a folder, or an architecture or quantization that is not supported.
    """

    model: Model
    precision: Precision

    def __init__(self, folder: str | Path):
        super().__init__(folder)
        self.shards: dict[int, Shard] = {}  # opened once, when they are first read
        self.precision = self.read_precision()
        check_kernels(self.precision, self.engine, self.mapping)
        if self.dtype == "float32":
            raise InputError(f"{self.folder}/config.json: dtype {shown(self.dtype)} is not supported")

    def tensors(self, index: int) -> dict[str, Tensor]:
        """What a layer's files hold, by name inside the layer."""
        return layer_tensors(self.model, self.precision.executed(index), self.engine, self.precision.kv_cache)

    def read(self, rank: int, name: str, device: str | torch.device = "cpu") -> torch.Tensor:
        """One tensor of a rank's file, as it is stored."""
        pinned = torch.device(device).type == "cuda"
        return self.shard(rank).read(name, pinned=pinned).to(device, non_blocking=pinned)

    def shard(self, rank: int) -> Shard:
        """A rank's file, opened again only where another has its name."""
        shard = self.shards.get(rank)
        if shard is None or not shard.file.is_current():
            shard = self.shards[rank] = Shard(self.rank_file(rank))
        return shard

    def layer(self, index: int, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
        """A layer's whole tensors, by TensorRT-LLM name inside the layer.

        Raises:
            InputError: ranks disagree about something that more than one of them holds.
        """
        found, prefix = self.pieces(index, range(self.mapping.tp_size), device), self.prefix(index)
        return {name: self.join(spec, pieces, prefix + name) for name, spec, pieces in found}

    def rank_layer(self, index: int, tp_rank: int, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
        """What one tensor-parallel rank has of a layer, likewise."""
        return {name: pieces[tp_rank] for name, _, pieces in self.pieces(index, [tp_rank], device)}

    def pieces(
        self, index: int, ranks: Sequence[int], device: str | torch.device
    ) -> Iterator[tuple[str, Tensor, dict[int, torch.Tensor]]]:
        """A layer's tensors, by name inside the layer: the piece of each of some tensor-parallel ranks that has one."""
        stage, prefix = self.stage(index), self.prefix(index)
        held = cache(lambda rank, name: self.read(stage * self.mapping.tp_size + rank, prefix + name, device))
        for name, spec in self.tensors(index).items():
            pieces = {
                rank: spec.storage.read(self.piece(held(rank, stored_name(name, spec)), spec, rank))
                for rank in ranks
                if self.mapping.holds(spec.linear, self.model, rank)
            }
            yield name, spec, pieces

    def stage(self, index: int) -> int:
        """The pipeline stage of a layer."""
        return next(number for number, layers in enumerate(self.stages) if index in layers)

    def prefix(self, index: int) -> str:
        """What names of a layer's tensors begin with in its ranks' files."""
        return self.model.family.engine_layer.format(i=index - self.stages[self.stage(index)].start)

    def piece(self, stored: torch.Tensor, spec: Tensor, tp_rank: int) -> torch.Tensor:
        """One expert's part of a rank's tensor of all; any other as it is."""
        if is_one(spec) or spec.linear is None or spec.linear.expert is None:
            return stored
        return stored[spec.linear.expert - self.mapping.experts(self.model, tp_rank).start]

    def join(self, spec: Tensor, pieces: dict[int, torch.Tensor], name: str) -> torch.Tensor:
        """Undo ``ranks.cut``: put every piece's channels back in their place; pieces: by tensor-parallel rank."""
        first = next(iter(pieces.values()))
        if len(pieces) == 1:
            return first
        if first.dtype == torch.float8_e4m3fn:  # PyTorch moves its bytes, but not its values
            moved = {rank: piece.view(torch.int8) for rank, piece in pieces.items()}
            return self.join(spec, moved, name).view(torch.float8_e4m3fn)
        if spec.summed:
            return torch.stack(list(pieces.values())).sum(0)
        if spec.cut_axis is None:
            if not all(torch.equal(piece, first) for piece in pieces.values()):
                raise InputError(f"{self.folder}: ranks disagree about {name}")
            return first
        axis = spec.axes.index(spec.cut_axis)
        whole = first.new_zeros(spec.shape(self.model))
        places = {rank: spec.places(self.model, self.mapping, rank).to(whole.device) for rank in pieces}
        for rank, piece in pieces.items():
            whole.index_copy_(axis, places[rank], piece)
        if not all(torch.equal(whole.index_select(axis, places[rank]), piece) for rank, piece in pieces.items()):
            raise InputError(f"{self.folder}: ranks that share heads disagree about {name}")
        return whole

    def rotary_frequencies(self) -> torch.Tensor:
        """Inverse frequencies that an engine rotates with, float32 [rotary_dim / 2]: the checkpoint's own table, or
        what TensorRT-LLM computes at load."""
        if self.model.brings_rotary_tables:
            return self.read(0, "rotary_inv_freq")
        return rotary_frequencies(self.model)[0]

    def embedding(self) -> Embedding:
        """What stands before the first layer."""
        ranks, family, positions = range(self.mapping.tp_size), self.model.family, None
        prefix = family.engine_embedding
        if family.position_embedding is not None:
            stored = self.same(ranks, f"{prefix}position_embedding.weight")
            positions = torch.cat((stored.new_zeros(family.first_position, stored.shape[1]), stored))
        suffixes = () if family.embedding_norm is None else family.embedding_norm.suffixes
        before = "" if family.embedding_norm is None else prefix + family.embedding_norm.name
        norm = {suffix: self.same(ranks, f"{before}.{suffix}") for suffix in suffixes}
        types = token_types.read(self.precision, lambda name: self.same(ranks, name))
        return Embedding(self.model, self.tokens(), positions, norm, types)

    def tokens(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """The table of tokens, [vocab_size, hidden_size]."""
        ranks, name = range(self.mapping.tp_size), f"{self.model.family.engine_embedding}vocab_embedding.weight"
        if self.embedding_axis is None:
            return self.same(ranks, name).to(device)
        pieces = [self.read(rank, name, device) for rank in ranks]
        return torch.cat(pieces, self.embedding_axis)[: self.model.vocab_size]

    @property
    def last_ranks(self) -> range:
        """The ranks of the last stage."""
        return range(self.mapping.world_size - self.mapping.tp_size, self.mapping.world_size)

    def final_norm(self) -> dict[str, torch.Tensor]:
        """The last norm's tensors [hidden_size], by last name."""
        suffixes = self.model.family.last_norm.suffixes
        return {suffix: self.same(self.last_ranks, f"transformer.ln_f.{suffix}") for suffix in suffixes}

    def encoder_head(self) -> EncoderHead:
        """What stands behind an encoder's last layer."""
        ranks = range(self.mapping.world_size)
        return read_head(self.model, lambda projection, suffix: self.same(ranks, f"{projection.name}.{suffix}"))

    def same(self, ranks: range, name: str) -> torch.Tensor:
        """A tensor that these ranks all hold whole."""
        first = self.read(ranks[0], name)
        if not all(torch.equal(first, self.read(rank, name)) for rank in ranks[1:]):
            raise InputError(f"{self.folder}: ranks disagree about {name}")
        return first

    def head(self, device: str | torch.device = "cpu") -> Head:
        """What stands behind the last layer, padding rows removed."""
        family = self.model.family
        weight = self.tokens(device) if self.model.shares_embedding else self.rows("lm_head.weight", device)
        bias = None if family.head_bias is None else self.rows("lm_head.bias", device)
        return Head(self.model, self.final_norm(), weight, bias)

    def rows(self, name: str, device: str | torch.device) -> torch.Tensor:
        """A tensor of the output projection, [its rows, ...]."""
        return torch.cat([self.read(rank, name, device) for rank in self.last_ranks])[: self.model.head_rows]
