"""The targets that there are, and who of them holds what."""

from __future__ import annotations

import difflib
from contextlib import AbstractContextManager
from pathlib import Path

from ..errors import InputError, shown
from ..quantize.scheme import Scheme
from .base import Target, Writer
from .compressed_tensors.target import CompressedTensors
from .edge.target import Edge
from .huggingface.target import HuggingFace
from .modelopt.target import ModelOpt
from .trtllm.target import TensorRTLLM

TARGETS: dict[str, type[Target]] = {kind.name: kind for kind in (TensorRTLLM, Edge, CompressedTensors, ModelOpt)}
# Every name that --quant may have, for one target or another.
NAMES = tuple(dict.fromkeys(name for kind in TARGETS.values() for name in kind.schemes()))


def scheme_for(kind: type[Target], name: str | None, group_size: int = 128) -> Scheme:
    """What a target holds by a name of --quant.

    Raises:
        InputError: it does not hold it; said with what it holds, and who else does.
    """
    if name is None or name in kind.schemes():
        return kind.scheme(name, group_size)
    others = [other.name for other in TARGETS.values() if name in other.schemes()]
    if not others:
        close = difflib.get_close_matches(name[:80].upper(), NAMES, 2)
        hint = f"did you mean {' or '.join(close)}?" if close else "enginesmith convert --help lists the names"
        raise InputError(f"quantization {shown(name)} is not supported; {hint}")
    canonical = next(str(TARGETS[other].schemes()[name].name) for other in others)
    if canonical in kind.schemes():
        raise InputError(f"--quant {name} is a name of --target {others[0]}; --target {kind.name} calls it {canonical}")
    raise InputError(
        f"--quant {name}: {kind.title} does not read it; --target {' or '.join(others)} holds it, and --target "
        f"{kind.name} holds {', '.join(kind.schemes())}"
    )


def files_of(target: Target, folder: Path) -> AbstractContextManager[Writer]:
    """A target's new files in a folder; closed whatever comes."""
    from .huggingface.writer import Files
    from .trtllm.writer import RankFiles

    if isinstance(target, HuggingFace):
        return Files.made(folder, target)
    assert isinstance(target, TensorRTLLM)
    return RankFiles.made(folder, target)
