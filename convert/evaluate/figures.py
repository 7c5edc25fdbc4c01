"""What came of tasks: their figures, which of them is the main one, and by how much it is worse than the source's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

# What is reported of a task that has it: accuracy by the likelihood of a byte; of others, their first metric.
MAIN = "acc_norm"
# Percentages already; others that are better when higher lie between -1 and 1, or are compared by their ratio.
PERCENTAGES = ("bleu", "chrf", "chrf++", "ter")


@dataclass(frozen=True)
class Figure:
    """One metric of one task, behind one filter.

    Attributes:
        task: or group.
        main: whether it is the one that the gate looks at.
        documents: how many were asked; None where the harness does not say.
        value, error: the checkpoint's, and its standard error where there is one.
        reference, reference_error: the source's.
    """

    task: str
    metric: str
    filter: str
    higher_is_better: bool
    main: bool
    documents: int | None
    value: float
    error: float | None = None
    reference: float | None = None
    reference_error: float | None = None

    @property
    def in_points(self) -> bool:
        """Whether it is compared in percentage points; else in percent of the source's."""
        values = [self.value] if self.reference is None else [self.value, self.reference]
        return self.metric in PERCENTAGES or (self.higher_is_better and all(abs(value) <= 1 for value in values))

    @property
    def change(self) -> float | None:
        """From the source's, in percentage points, or percent of it."""
        if self.reference is None:
            return None
        if self.in_points:
            return (1 if self.metric in PERCENTAGES else 100) * (self.value - self.reference)
        return 100 * (self.value / self.reference - 1) if self.reference else math.nan

    @property
    def drop(self) -> float | None:
        """By how much it is worse than the source's; negative where it is better."""
        change = self.change
        return None if change is None else -change if self.higher_is_better else change


def figures(results: dict[str, Any]) -> list[Figure]:
    """Every figure of what the harness's ``evaluate`` gave, tasks of a group behind it."""
    found = list[Figure]()
    for task, values in results["results"].items():
        own = [name for name, value in values.items() if "," in name and isinstance(value, (int, float))]
        metrics = [name for name in own if not name.partition(",")[0].endswith("_stderr")]
        main = next((name for name in metrics if name.startswith(f"{MAIN},")), next(iter(metrics), None))
        better, counted = results["higher_is_better"].get(task, {}), results["n-samples"].get(task)
        for name in metrics:
            metric, _, behind = name.partition(",")
            error = values.get(f"{metric}_stderr,{behind}")
            found.append(
                Figure(
                    task,
                    metric,
                    behind,
                    better.get(metric) is not False,
                    name == main,
                    counted["effective"] if counted else values.get("sample_len"),
                    float(values[name]),
                    error if isinstance(error, float) else None,
                )
            )
    return found


def beside(ours: Sequence[Figure], theirs: Sequence[Figure]) -> list[Figure]:
    """A checkpoint's figures with the source's."""
    known = {(one.task, one.metric, one.filter): one for one in theirs}
    pairs = [(one, known[one.task, one.metric, one.filter]) for one in ours]
    return [replace(one, reference=other.value, reference_error=other.error) for one, other in pairs]


def failures(found: Sequence[Figure], judged: Sequence[str], most: float | None) -> list[str]:
    """What is no number, and what fails a gate of ``most`` points, of the tasks and groups in ``judged``."""
    wrong = list[str]()
    for one in found:
        if not one.main or one.task not in judged:
            continue
        if not math.isfinite(one.value):
            wrong.append(f"{one.task}: {one.metric} is {one.value}")
        elif most is not None and one.drop is not None and not one.drop <= most:
            unit = "points" if one.in_points else "%"
            wrong.append(
                f"{one.task}: {one.metric} is {one.value:.4f}, the source's {one.reference:.4f}: worse by "
                f"{one.drop:.2f} {unit}, more than --max_drop {most:g}"
            )
    return wrong
