"""The job: a checkpoint continues prompts, and its float source beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from ..errors import InputError
from ..files.disk import is_there, read_json, shown_path
from ..models.model import Model
from ..peers import ALONE, Peers, started
from ..prove.folder import FloatFolder
from ..prove.proven import Executable, check_whole, opened
from ..prove.verify import check_same_model
from ..sources.readymade.detect import FILES
from ..sources.special_tokens import special_tokens
from ..sources.tokenizer import Tokenizer, tokenizer_files
from ..targets.trtllm.manifest import CONFIG
from .flight import BEYOND
from .network import Network
from .options import GenerateOptions
from .prompts import Prompt
from .text import OnPiece, Speed, Written, continued

BEYOND_DTYPE = (
    "no token can come next: a value is beyond the checkpoint's dtype (enginesmith verify says which, and convert "
    "--dtype bfloat16 helps), or every token is forbidden"
)


@dataclass(frozen=True)
class Generated:
    """What came of prompts.

    Attributes:
        answers: one a prompt.
        speed: of the checkpoint.
        reference, reference_speed: the float source's, where it was asked for.
    """

    answers: list[Written]
    speed: Speed
    reference: list[Written] | None = None
    reference_speed: Speed | None = None

    def equal_tokens(self, number: int) -> int | None:
        """How many tokens an answer has in common with the source's before they part; None where they are the same."""
        assert self.reference is not None
        one, other = self.answers[number], self.reference[number]
        if (one.ids, one.reason) == (other.ids, other.reason):
            return None
        same = takewhile(lambda pair: pair[0] == pair[1], zip(one.ids, other.ids, strict=False))
        return sum(1 for _ in same)


class Speaker:
    """A folder that continues prompts: a TensorRT-LLM checkpoint, a quantized Hugging Face folder, or one in floating
    point.

    Args:
        tokenizer_dir: a folder with its tokenizer; the folder itself if None.
        dtype: of values between operations; None for the folder's, of one in floating point float32.
        peers: the processes that execute a checkpoint's ranks, if one does not execute them all.

    Raises:
        InputError: a folder or tokenizer that cannot be used.
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer_dir: str | Path | None,
        reader: str = "kernels",
        dtype: str | None = None,
        peers: Peers = ALONE,
    ):
        self.folder = Path(folder)
        self.proven = opened_any(folder, reader, dtype, peers)
        self.model: Model = self.proven.model
        if not self.model.family.predicts_tokens:
            raise InputError(f"{shown_path(self.folder)}: {self.model.architecture} predicts no tokens to generate")
        words = self.folder if tokenizer_dir is None else Path(tokenizer_dir)
        if not tokenizer_files(words):
            raise InputError(
                f"{shown_path(words)}: no tokenizer here; give the folder of the model that has it, --tokenizer_dir or "
                "--reference"
            )
        self.tokenizer = Tokenizer(words, "--tokenizer_dir" if tokenizer_dir is not None else "CHECKPOINT")
        self.ends = special_tokens(self.tokenizer.loaded, words, self.model.vocab_size).end_ids

    def ids(self, prompts: Sequence[Prompt], options: GenerateOptions) -> list[list[int]]:
        """Token ids of prompts that leave room for answers."""
        made = [prompt.ids(self.tokenizer, options.chat) for prompt in prompts]
        for prompt, ids in zip(prompts, made, strict=True):
            if len(ids) + options.max_tokens > self.model.longest:
                raise InputError(
                    f"{prompt.where}: {len(ids)} tokens and --max_tokens {options.max_tokens} are more than the "
                    f"{self.model.longest} positions of the model; give less"
                )
            if max(ids) >= self.model.vocab_size:
                raise InputError(
                    f"{prompt.where}: token {max(ids)} is beyond the model's vocabulary of {self.model.vocab_size}; "
                    "give its own tokenizer"
                )
        return made

    def continued(
        self, prompts: Sequence[list[int]], options: GenerateOptions, on_piece: OnPiece
    ) -> tuple[list[Written], Speed]:
        """``text.continued``; the model is in memory for as long as that takes."""
        longest = max(map(len, prompts)) + options.max_tokens
        network = Network(self.proven, self.proven.peers.device(options.device), longest)
        return continued(network, self.tokenizer, prompts, self.ends, options, on_piece)


def speakers(
    checkpoint: str | Path,
    tokenizer_dir: str | Path | None,
    reference: str | Path | None,
    reader: str,
    dtype: str,
    peers: Peers = ALONE,
) -> list[Speaker]:
    """A checkpoint, and its float source in float32 where there is a reference.

    Args:
        tokenizer_dir: a folder with the tokenizer; the reference, or the checkpoint, if None.
        dtype: of values between the checkpoint's operations; "checkpoint" for its own.
        peers: the processes that execute the checkpoint's ranks; each executes all of its source.

    Raises:
        InputError: a folder that cannot be used, or the reference is another model.
    """
    words = tokenizer_dir if tokenizer_dir is not None else reference
    made = [Speaker(checkpoint, words, reader, None if dtype == "checkpoint" else dtype, peers)]
    if reference is not None:
        made.append(Speaker(reference, words))
        check_same_model(*made)
    return made


def opened_any(
    folder: str | Path, reader: str = "kernels", dtype: str | None = None, peers: Peers = ALONE
) -> Executable:
    """``opened``, of folders in floating point too."""
    folder = Path(folder)
    config = read_json(folder / CONFIG) if is_there(folder / CONFIG) else {}
    quantized = "quantization_config" in config or any(is_there(folder / name) for name in FILES)
    if "architectures" in config and not quantized:
        check_whole(folder, peers)
        return FloatFolder(folder)
    return opened(folder, reader, dtype, peers)


def generate(
    checkpoint: str | Path,
    prompts: Sequence[Prompt],
    options: GenerateOptions,
    tokenizer_dir: str | Path | None = None,
    reference: str | Path | None = None,
    on_piece: OnPiece = lambda number, piece: None,
) -> Generated:
    """Continue prompts with a checkpoint; with ``reference`` its float source continues them too, in float32.

    Args:
        tokenizer_dir: a folder with the tokenizer; the reference, or the checkpoint, if None.
        on_piece: told the number of a prompt and a piece of the checkpoint's answer, as it comes.

    Raises:
        InputError: a folder, a prompt or an option that cannot be used.
    """
    options.check()
    if not prompts:
        raise InputError("prompts: there is none; give one")
    speaker, *source = speakers(checkpoint, tokenizer_dir, reference, options.reader, options.dtype, started())
    ids = speaker.ids(prompts, options)
    answers, speed = speaker.continued(ids, options, on_piece)
    for prompt, answer in zip(prompts, answers, strict=True):
        if answer.reason == BEYOND:
            raise InputError(f"{prompt.where}: {BEYOND_DTYPE}")
    theirs = [one.continued(ids, options, lambda number, piece: None) for one in source]
    return Generated(answers, speed, *(theirs[0] if theirs else ()))
