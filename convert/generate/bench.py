"""How fast a checkpoint reads a prompt and continues it, and its float source beside it, executed by transformers."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch

from ..errors import InputError, reason
from ..files.disk import shown_path
from ..peers import started
from ..prove.folder import FloatFolder
from ..prove.proven import Executable
from ..prove.verify import check_same_model
from .job import opened_any
from .network import Network
from .options import BenchOptions
from .passes import Piece

# Nothing is downloaded, and no code of a folder is executed.
ITS_OWN: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class Measured:
    """One model's speed.

    Attributes:
        name: of what executes it.
        load: seconds until it could begin.
        prefill, decode: tokens a second of all sequences together.
        memory: bytes on the GPU at most, weights and cache, of the first where there are several; None on a CPU.
    """

    name: str
    load: float
    prefill: float
    decode: float
    memory: int | None


class Candidate(Protocol):
    """A model that is timed."""

    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        """Read prompts, int64 [batch, tokens] on the CPU; the most likely next tokens, [batch, 1]."""

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Go on with one token of each; the same."""


class Checkpoint:
    """What this project executes."""

    def __init__(self, proven: Executable, longest: int, device: torch.device):
        self.network, self.longest, self.seen = Network(proven, device, longest), longest, 0

    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        self.network.reserve(len(ids), self.longest)
        self.seen = 0
        return self.passed(ids)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        return self.passed(ids)

    def passed(self, ids: torch.Tensor) -> torch.Tensor:
        """The next tokens of all sequences."""
        batch, tokens = ids.shape
        pieces = [Piece(slot, self.seen, tokens) for slot in range(batch)]
        hidden = self.network(pieces, ids.flatten().tolist()).view(batch, tokens, -1)[:, -1]
        self.seen += tokens
        return self.network.logits(hidden).argmax(-1, keepdim=True)


@contextmanager
def executing(folder: Path) -> Iterator[None]:
    """Raise InputError for what transformers says of a folder that it cannot execute."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"--reference: transformers cannot execute {shown_path(folder)} ({reason(error)}); leave it out"
        ) from error


class Transformers:
    """The float source as transformers executes it, with its attention of scaled dot products."""

    def __init__(self, folder: Path, dtype: str, device: torch.device):
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.device = device
        with executing(folder):
            made: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", **ITS_OWN
            )
        self.model = made.to(device)
        self.cache: Any = None

    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        self.cache = None
        return self.step(ids)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        made = self.model(ids.to(self.device), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = made.past_key_values
        likely: torch.Tensor = made.logits[:, -1].argmax(-1, keepdim=True)
        return likely


def seconds(work: Callable[[], Any]) -> float:
    """How long work takes, with what it leaves a GPU to do."""

    def settle() -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    settle()
    start = time.perf_counter()
    work()
    settle()
    return time.perf_counter() - start


@torch.inference_mode()
def rates(candidate: Candidate, ids: torch.Tensor, options: BenchOptions) -> tuple[float, float]:
    """Tokens a second of prompts and of what continues them; the first of every kind of pass is not counted."""
    read, spoken = list[float](), list[float]()

    def speak() -> None:
        following = first
        for _ in range(options.new_tokens):
            following = candidate.step(following)
            following.tolist()

    for _ in range(options.repeats + 1):
        read.append(seconds(lambda: candidate.prefill(ids)))
        first = candidate.prefill(ids)
        spoken.append(seconds(speak))
    said = len(ids) * options.new_tokens
    return ids.numel() / median(read[1:]), said / median(spoken[1:])


def timed(
    name: str, make: Callable[[], Candidate], ids: torch.Tensor, options: BenchOptions, device: torch.device
) -> Measured:
    """Load a model, time it, and let it go."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        candidate = make()
        load = time.perf_counter() - start
        prefill, decode = rates(candidate, ids, options)
    except torch.OutOfMemoryError as error:
        raise InputError(f"{name}: the GPU's memory is too small; give less --batch or --prompt_tokens") from error
    memory = torch.cuda.max_memory_allocated() if cuda else None
    del candidate
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    return Measured(name, load, prefill, decode, memory)


def check_executed(folder: Path) -> None:
    """Raise InputError for a model that transformers does not know."""
    from transformers import AutoConfig

    with executing(folder):
        AutoConfig.from_pretrained(folder, **ITS_OWN)


def bench(checkpoint: str | Path, options: BenchOptions, reference: str | Path | None = None) -> list[Measured]:
    """Time a checkpoint, and with ``reference`` its float source in the checkpoint's dtype.

    Raises:
        InputError: a folder that cannot be used, another model's reference, or more tokens than the model has places.
    """
    peers, longest = started(), options.prompt_tokens + options.new_tokens
    proven = opened_any(checkpoint, peers=peers)
    model = proven.model
    if longest > model.longest:
        raise InputError(
            f"{shown_path(Path(checkpoint))}: --prompt_tokens and --new_tokens are {longest} together, more than the "
            f"{model.longest} positions of the model; give less"
        )
    if reference is not None:
        check_same_model(proven, FloatFolder(reference, flag="--reference"))
        check_executed(Path(reference))
    shape = (options.batch, options.prompt_tokens)
    ids = torch.randint(model.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    name, device = "checkpoint" if peers.size == 1 else f"checkpoint, {peers.size} ranks", peers.device(options.device)
    made = [timed(name, lambda: Checkpoint(proven, longest, device), ids, options, device)]
    if reference is not None and peers.rank == 0:
        dtype = getattr(proven, "dtype_name", "float32")
        name = f"transformers, {dtype}"
        made.append(timed(name, lambda: Transformers(Path(reference), dtype, device), ids, options, device))
    return made
