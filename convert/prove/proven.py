"""What can be proven: a folder that is executed, whoever reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ...plugins.lazy import torch
from ..errors import InputError
from ..files.disk import is_there, read_json, shown_path
from ..models.encoder_head import EncoderHead
from ..models.ends import Embedding, Head
from ..models.model import Model
from ..peers import ALONE, Peers
from ..targets.trtllm.checkpoint import Checkpoint
from ..targets.trtllm.formats.base import Engine
from ..targets.trtllm.manifest import CONFIG, Manifest
from ..targets.trtllm.mixture import quant_algo
from ..targets.trtllm.ranks import rank_model
from .structure import checkpoint_problems

if TYPE_CHECKING:
    from ..models.rotation import Rotation
    from .engine_layer import EngineLayer, ExecutedLayer
    from .runtime import Runtime


class Executable(Protocol):
    """A model on disk that is executed layer by layer.

    Attributes:
        peers: the processes that execute a part each.
    """

    folder: Path
    model: Model
    peers: Peers

    def runtime(self, tokens: int, device: torch.device) -> Runtime: ...

    def executed(self, index: int, device: torch.device) -> ExecutedLayer: ...

    def embedding(self) -> Embedding: ...

    def head(self, device: torch.device) -> Head: ...


class Proven(Executable, Protocol):
    """A quantized one.

    Attributes:
        quant: what it is quantized by; None in floating point.
        kv_cache: what its KV cache is quantized to, or None.
        dtype_name: of what is not quantized.
        cut: how its files are cut, for a report.
        sliding_window: attention window of all layers in tokens, or None.
    """

    manifest: Manifest
    quant: str | None
    kv_cache: str | None
    dtype_name: str
    cut: str
    sliding_window: int | None

    def rotation(self) -> Rotation | None: ...

    def encoder_head(self) -> EncoderHead: ...

    def problems(self, values: bool = True) -> list[str]: ...


class ProvenCheckpoint(Checkpoint):
    """A TensorRT-LLM checkpoint: all ranks put together, or the one of this process.

    Args:
        dtype: of values between operations; None for its own.
        peers: the processes that execute a rank each.

    Raises:
        InputError: its ranks cannot be executed by so many.
    """

    def __init__(self, folder: str | Path, dtype: str | None = None, peers: Peers = ALONE):
        self.computed, self.peers = dtype, peers
        super().__init__(folder)
        self.check_peers()
        self.quant, self.kv_cache = quant_algo(self.precision), self.precision.kv_cache
        self.dtype_name, self.cut = self.dtype, f", tp {self.mapping.tp_size}, pp {self.mapping.pp_size}"

    def check_peers(self) -> None:
        """Raise InputError unless there is one process for all ranks, or one for each."""
        size, mapping = self.peers.size, self.mapping
        if size == 1:
            return
        alone = "start one process, without torchrun, which puts all ranks together"
        if mapping.pp_size > 1 or self.model.num_experts:
            what = "ranks with experts" if self.model.num_experts else f"the stages of pp_size {mapping.pp_size}"
            raise InputError(f"{shown_path(self.folder)}: {what} are not executed by a process each; {alone}")
        if mapping.tp_size != size:
            fitting = f"use torchrun --nproc_per_node {mapping.tp_size}, or " if mapping.tp_size > 1 else ""
            raise InputError(
                f"{shown_path(self.folder)}: tp_size is {mapping.tp_size}, but there are {size} processes "
                f"(WORLD_SIZE); {fitting}{alone}"
            )

    @property
    def engine(self) -> Engine:
        """What it is made for, or computes with where another dtype is asked for."""
        stated = super().engine
        return stated if self.computed is None else replace(stated, dtype=self.computed)

    def runtime(self, tokens: int, device: torch.device) -> Runtime:
        """What executes its layers on sequences of so many tokens."""
        from .runtime import Runtime

        frequencies, dtype = self.rotary_frequencies(), self.engine.torch_dtype
        return Runtime(self.executed_model, dtype, frequencies, tokens, device, peers=self.peers)

    @property
    def executed_model(self) -> Model:
        """The dimensions of what this process executes."""
        return self.model if self.peers.size == 1 else rank_model(self.model, self.mapping, self.peers.rank)

    def executed(self, index: int, device: torch.device) -> EngineLayer:
        """A layer, on a device."""
        from .engine_layer import EngineLayer

        held = self.layer(index, device) if self.peers.size == 1 else self.rank_layer(index, self.peers.rank, device)
        tensors, schemes = {name: tensor.to(device) for name, tensor in held.items()}, self.precision.executed(index)
        return EngineLayer(self.executed_model, self.engine, tensors, schemes, self.kv_cache, peers=self.peers)

    def embedding(self) -> Embedding:
        """What stands before the first layer, in the dtype that is computed with."""
        embedding, dtype = super().embedding(), self.engine.torch_dtype
        return embedding.map(lambda table: table.to(dtype))

    def rotation(self) -> Rotation | None:
        """Of the residual stream, as the manifest recorded it, to compare hidden states with the source's."""
        from ..models.rotation import Rotation

        seed = self.manifest.rotation
        return None if seed is None else Rotation(self.model.hidden_size, seed)

    def problems(self, values: bool = True) -> list[str]:
        """Everything wrong with the ranks' files."""
        return checkpoint_problems(self, values)


def opened(folder: str | Path, reader: str = "kernels", dtype: str | None = None, peers: Peers = ALONE) -> Proven:
    """A TensorRT-LLM checkpoint, or a quantized Hugging Face folder.

    Args:
        reader: whose arithmetic a folder is executed with; see ``folder.READERS``.
        dtype: of values between operations; None for the folder's.
        peers: the processes that execute a checkpoint's ranks, if one does not execute them all.

    Raises:
        InputError: neither, or not to be executed by so many processes.
    """
    config = Path(folder) / CONFIG
    inside = [] if is_there(config) else sorted(path.parent.name for path in Path(folder).glob(f"*/{CONFIG}"))
    if inside:
        raise InputError(f"{shown_path(Path(folder))}: holds several folders; give one: {', '.join(inside[:4])}")
    if is_there(config) and "architectures" in read_json(config):
        check_whole(folder, peers)
        from .folder import QuantizedFolder

        return QuantizedFolder(folder, reader, None if dtype is None else getattr(torch, dtype))
    if reader != "kernels":
        raise InputError(f"--reader {reader} is for Hugging Face folders, not TensorRT-LLM checkpoints; leave it away")
    return ProvenCheckpoint(folder, dtype, peers)


def check_whole(folder: str | Path, peers: Peers) -> None:
    """Raise InputError where several processes would execute a folder that has no ranks."""
    if peers.size > 1:
        raise InputError(
            f"{shown_path(Path(folder))}: only ranks of a TensorRT-LLM checkpoint are executed by {peers.size} "
            "processes (WORLD_SIZE); start one, without torchrun"
        )
