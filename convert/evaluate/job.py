"""The job: a checkpoint answers tasks, and its float source beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..device import check_device
from ..errors import InputError, reason
from ..generate.job import speakers
from ..prove.verify import finite
from .figures import Figure, beside, failures, figures
from .options import EvaluateOptions

# Told whose answers, to what kind of request, how many are there, and of how many.
OnAnswers = Callable[[str, str, int, int], None]


@dataclass(frozen=True)
class Evaluated:
    """What came of tasks.

    Attributes:
        figures: every metric of every task, and of groups.
        failures: figures that are no number, and those that fail the gate.
        samples: by task, every question with the checkpoint's answers, as the harness logs it.
        reference_samples: with the source's, where it was asked.
    """

    figures: list[Figure]
    failures: list[str]
    samples: dict[str, list[dict[str, Any]]]
    reference_samples: dict[str, list[dict[str, Any]]] | None = None

    @property
    def ok(self) -> bool:
        return not self.failures

    def summary(self) -> dict[str, Any]:
        """Everything but samples as one JSON object."""
        told = [asdict(one) | {"change": one.change, "in_points": one.in_points} for one in self.figures]
        plain = [{key: finite(value) for key, value in one.items()} for one in told]
        return {"ok": self.ok, "failures": self.failures, "figures": plain}


def evaluate(
    checkpoint: str | Path,
    options: EvaluateOptions,
    tokenizer_dir: str | Path | None = None,
    reference: str | Path | None = None,
    on_answers: OnAnswers = lambda who, what, done, total: None,
) -> Evaluated:
    """Have a checkpoint answer tasks; with ``reference`` its float source answers them too, in float32.

    Args:
        tokenizer_dir: a folder with the tokenizer; the reference, or the checkpoint, if None.

    Raises:
        InputError: a folder, a task or an option that cannot be used, or the harness is not installed.
    """
    options.check()
    if options.max_drop is not None and reference is None:
        raise InputError("--max_drop needs --reference HF_DIR to compare with")
    check_device(options.device)
    both = speakers(checkpoint, tokenizer_dir, reference, options.reader, options.dtype)
    try:
        from . import harness, model
    except ImportError as error:
        raise InputError(
            f"lm-evaluation-harness cannot be imported ({reason(error)}); pip install 'enginesmith[evaluate]'"
        ) from None
    with harness.surroundings(options.allow_downloads, options.allow_task_code):
        asked, loaded = harness.load(options)
        results = []
        for who, speaker in zip(("checkpoint", "source"), both, strict=False):
            results.append(harness.run(model.Answering(speaker, options, partial(on_answers, who)), loaded, options))
    found = figures(results[0])
    if reference is None:
        return Evaluated(found, failures(found, harness.judged(results[0], asked), None), results[0]["samples"])
    found = beside(found, figures(results[1]))
    wrong = failures(found, harness.judged(results[0], asked), options.max_drop)
    return Evaluated(found, wrong, results[0]["samples"], results[1]["samples"])
