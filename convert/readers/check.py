"""Every runtime's verdict of a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, printable, shown
from . import edge, sglang, transformers, trtllm, vllm
from .compressed import Compressed
from .findings import READS, VERDICTS, Findings, refuses
from .folder import Folder
from .modelopt import Modelopt, in_file
from .packed import packed


@dataclass(frozen=True)
class Runtime:
    """A reader of folders.

    Attributes:
        title, version: what its rules were read off.
        rules: what it does with a folder.
    """

    title: str
    version: str
    rules: Callable[[Folder], Findings]


RUNTIMES = {
    "edge": Runtime(edge.TITLE, edge.VERSION, edge.rules),
    "vllm": Runtime(vllm.TITLE, vllm.VERSION, vllm.rules),
    "sglang": Runtime(sglang.TITLE, sglang.VERSION, sglang.rules),
    "trtllm": Runtime(trtllm.TITLE, trtllm.VERSION, trtllm.rules),
    "transformers": Runtime(transformers.TITLE, transformers.VERSION, transformers.rules),
}


@dataclass(frozen=True)
class Reading:
    """How a runtime reads a folder.

    Attributes:
        runtime: its name in RUNTIMES; title: with its version.
        verdict: "reads"; "unknown", where nobody has tried; "refuses", with an error; "misreads", without one.
        reasons: why it does not read it right, the worst first; empty where it does.
        notes: what is worth knowing where it does.
    """

    runtime: str
    title: str
    verdict: str
    reasons: list[str]
    notes: list[str]


@dataclass(frozen=True)
class CheckedFolder:
    """How runtimes read a folder.

    Attributes:
        what: what it is, in words.
        readings: one a runtime.
        ok: all that were asked for read it right; or one does, where none was asked for.
    """

    what: str
    readings: list[Reading]
    ok: bool


def check_folder(folder: str | Path, runtimes: Sequence[str] = ()) -> CheckedFolder:
    """The verdict of some runtimes, or of all.

    Raises:
        InputError: files that no model has, or a runtime that is not known.
    """
    for name in runtimes:
        if name not in RUNTIMES:
            raise InputError(f"runtime {shown(name)} is not known; use one of: {', '.join(RUNTIMES)}")
    opened = Folder(folder)
    readings = [reading(opened, name) for name in dict.fromkeys(runtimes or RUNTIMES)]
    right = [one.verdict == READS for one in readings]
    return CheckedFolder(title(opened), readings, all(right) if runtimes else any(right))


def reading(folder: Folder, name: str) -> Reading:
    """One runtime's verdict: the worst of what its rules find."""
    runtime = RUNTIMES[name]
    found = sorted(engines_only() if folder.for_engines else runtime.rules(folder), key=lambda one: -rank(one.verdict))
    verdict = found[0].verdict if found else READS
    reasons = [printable(one.text) for one in found if one.verdict != READS]
    notes = [printable(one.text) for one in found] if verdict == READS else []
    return Reading(name, f"{runtime.title} {runtime.version}", verdict, reasons, notes)


def rank(verdict: str) -> int:
    return VERDICTS.index(verdict)


def engines_only() -> Findings:
    yield refuses(
        "config.json: a checkpoint of TensorRT-LLM's engine backend, which only trtllm-build of 0.16 to 1.2.1 reads"
    )


def title(folder: Folder) -> str:
    """What a folder is, as its configuration says."""
    modelopt: Modelopt | None = None if folder.for_engines else in_file(folder)
    if folder.for_engines:
        return "TensorRT-LLM checkpoint"
    if folder.method == "compressed-tensors":
        return Compressed(folder).title
    if modelopt is not None:
        return modelopt.title
    of_words = packed(folder)
    if of_words is not None:
        return of_words.title
    return folder.method or ("quantized, but nothing says how" if folder.linears else "floating point")
