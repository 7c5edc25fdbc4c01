"""What is asked of a checkpoint, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import InputError, shown
from ..files.bounds import Options, bounded, usable


def names(value: Any, where: str) -> tuple[str, ...]:
    """Names one by one, or several of them with commas between."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)) or not all(usable(one) for one in given):
        raise InputError(f"{where} is {shown(value)}; a list of names is needed")
    return tuple(dict.fromkeys(name for one in given for part in one.split(",") if (name := part.strip())))


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """How a checkpoint is evaluated.

    Attributes:
        tasks: names of tasks, groups and tags of lm-evaluation-harness, or patterns of them (``mmlu_*``).
        include_path: a folder of task files of one's own.
        num_fewshot: examples before each question; the task's own number if None.
        limit: of each task's documents: so many of the first, or below 1 this share of them.
        batch_size: sequences that are computed at once; None for as many as a bounded KV cache holds.
        max_length: tokens of a sequence; the model's positions if None.
        add_bos_token: before every text, or before none; as the tokenizer does if None.
        apply_chat_template: questions go through the tokenizer's chat template, examples as turns before them.
        seed: of few-shot examples and sampling; the harness's own if None.
        max_drop: percentage points; a main figure that is worse than the source's by more fails.
        device: "auto", or a torch device.
        reader, dtype: as for generate.
        allow_downloads: data sets may come from the Hugging Face Hub; else only what is there is read.
        allow_task_code: task files of ``include_path`` may name functions, which run, and files elsewhere.
    """

    tasks: tuple[str, ...] = bounded((), read=names)
    include_path: str | None = bounded(None, path=True)
    num_fewshot: int | None = bounded(None, least=0)
    limit: float | None = bounded(None, above=0)
    batch_size: int | None = bounded(None, least=1, none="auto")
    max_length: int | None = bounded(None, least=2)
    add_bos_token: bool | None = None
    apply_chat_template: bool = False
    seed: int | None = bounded(None, least=0)
    max_drop: float | None = bounded(None, least=0)
    device: str = "auto"
    reader: str = bounded("kernels", words=("kernels", "transformers", "edge"))
    dtype: str = bounded("checkpoint", words=("checkpoint", "float32"))
    allow_downloads: bool = False
    allow_task_code: bool = False

    def check(self) -> None:
        """Raise InputError where nothing is asked."""
        if not self.tasks:
            raise InputError("--tasks names none; give some, with commas between")
