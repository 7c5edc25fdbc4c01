"""The ranks' files of a checkpoint: laid out before the first number is known, and filled layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch.nn import functional

from ...files.tensors import TensorFile
from ...files.written import Written
from ...models.encoder_head import EncoderHead
from ...models.ends import Embedding, Head
from ...models.rope import rotary_pairs
from ...models.rotary import rotary_frequencies
from ..base import Tensors
from . import token_types
from .layout import FREQUENCIES, PAIRS, embedding_axis, is_one, padded_vocab, rank_tensors, stored_name
from .ranks import Tensor, cut
from .target import TensorRTLLM


class RankFiles:
    """Every rank's file, open.

    Args:
        files: of the ranks, in order.
    """

    def __init__(self, files: list[TensorFile], target: TensorRTLLM):
        self.files, self.target, self.mapping, self.model = files, target, target.mapping, target.precision.model

    @staticmethod
    @contextmanager
    def made(folder: Path, target: TensorRTLLM) -> Iterator[RankFiles]:
        """New files in a folder; closed whatever comes."""
        mapping = target.mapping
        with ExitStack() as opened:
            files = []
            for rank in range(mapping.world_size):
                axis = embedding_axis(target.precision.model, mapping)
                tensors = rank_tensors(target.precision, mapping, rank, target.engine, axis)
                files.append(TensorFile(folder / f"rank{rank}.safetensors", tensors))
                opened.callback(files[-1].abandon)
            made = RankFiles(files, target)
            made.write_rotary_tables()
            yield made

    def write_rotary_tables(self) -> None:
        """Store frequencies and (cos, sin) pairs on every rank, where TensorRT-LLM's own would be wrong."""
        if not self.model.brings_rotary_tables:
            return
        frequencies, _ = rotary_frequencies(self.model)
        for file in self.files:
            file.write(FREQUENCIES, frequencies)
            file.fill(PAIRS, rotary_pairs(frequencies, self.model.max_position_embeddings))

    def write_embedding(self, embedding: Embedding) -> None:
        """Store what stands before the first layer, in any floating dtype, on the first stage."""
        stored, prefix = self.target.embedding(embedding), self.model.family.engine_embedding
        for tp_rank, file in enumerate(self.files[: self.mapping.tp_size]):
            tokens = stored.tokens
            if embedding_axis(self.model, self.mapping) is not None:
                tokens = tokens.chunk(self.mapping.tp_size)[tp_rank]
            file.write(f"{prefix}vocab_embedding.weight", tokens)
            if stored.positions is not None:
                positions = stored.positions[self.model.family.first_position :]
                file.write(f"{prefix}position_embedding.weight", positions)
            if self.model.family.embedding_norm is not None:
                for suffix, tensor in stored.norm.items():
                    file.write(f"{prefix}{self.model.family.embedding_norm.name}.{suffix}", tensor)
            if stored.types is not None:
                for name, tensor in token_types.store(self.target.precision, stored.types).items():
                    file.write(name, tensor)

    def write_layer(self, index: int, tensors: Tensors) -> None:
        """Cut a layer's whole tensors, by name inside it, over the ranks of its stage and store them."""
        stages, ranks = self.mapping.stages(self.model.num_hidden_layers), self.mapping.tp_size
        stage = next(number for number, layers in enumerate(stages) if index in layers)
        prefix, specs = self.model.family.engine_layer.format(i=index - stages[stage].start), self.target.tensors(index)
        stacks: dict[str, list[str]] = {}
        for name in tensors:
            stacks.setdefault(stored_name(name, specs[name]), []).append(name)
        for tp_rank, file in enumerate(self.files[stage * ranks : (stage + 1) * ranks]):
            for stored, names in stacks.items():
                own = [name for name in names if self.mapping.holds(specs[name].linear, self.model, tp_rank)]
                pieces = [self.piece(tensors[name], specs[name], tp_rank) for name in own]
                file.write(prefix + stored, pieces[0] if is_one(specs[own[0]]) else torch.stack(pieces))

    def piece(self, tensor: torch.Tensor, spec: Tensor, tp_rank: int) -> torch.Tensor:
        """What a rank's file holds of a whole tensor."""
        return spec.storage.store(cut(tensor, spec, self.model, self.mapping, tp_rank))

    def write_head(self, head: Head) -> None:
        """Store the final norm's tensors and each rank's rows of the output projection, zero rows at its end."""
        ranks = self.mapping.tp_size
        share = padded_vocab(self.model, ranks) // ranks
        for tp_rank, file in enumerate(self.files[-ranks:]):
            own = slice(tp_rank * share, (tp_rank + 1) * share)
            for suffix, tensor in head.norm.items():
                file.write(f"transformer.ln_f.{suffix}", tensor)
            if not self.model.shares_embedding:
                rows = head.weight[own]
                file.write("lm_head.weight", functional.pad(rows, (0, 0, 0, share - rows.shape[0])))
            if head.bias is not None:
                file.write("lm_head.bias", functional.pad(head.bias[own], (0, share - len(head.bias[own]))))

    def write_encoder_head(self, head: EncoderHead) -> None:
        """Store what stands behind an encoder's last layer, whole on every rank."""
        for file in self.files:
            for name, tensor in self.target.encoder_head(head).named():
                file.write(name, tensor)

    def finish(self, written: Written) -> None:
        """Close the files, each of which must be complete by now."""
        for file in self.files:
            written.add(file.path, file.close())
