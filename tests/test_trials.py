"""When schedules are looked for, and that they are compiled side by side."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("triton")

from enginesmith.plugins import trials


def test_a_schedule_is_looked_for_once_for_each_kind() -> None:
    launched: list[object] = []

    class Kernel:
        def __init__(self, name: str):
            self.name = name

        def __getitem__(self, grid: object) -> Any:
            return lambda *arguments, **meta: launched.append((self.name, arguments, meta))

    tuned = object.__new__(trials.Tuned)
    tuner: Any = Kernel("tuner")
    tuner.best_config = SimpleNamespace(pre_hook=None, kwargs={"B": 16}, all_kwargs=lambda: {"B": 16})
    again: Any = Kernel("fn")
    tuned.tuner, tuned.launches, tuned.found, tuned.coming = tuner, again, {}, None
    for kind in ("a", "a", "b"):
        tuned.launch(kind, lambda sizes: (sizes["B"],), 5, C=1)
    assert launched == [("tuner", (5,), {"C": 1}), ("fn", (5,), {"C": 1, "B": 16}), ("tuner", (5,), {"C": 1})]


def test_schedules_of_a_trial_are_compiled_side_by_side_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, by all but the launch's own arguments, and each with the shapes that its hook gives."""
    compiled: list[object] = []
    shape = SimpleNamespace(tile=None)

    def config(size: int) -> Any:
        def hook(named: dict[str, Any]) -> None:
            named["x"].tile = named["B"]

        return SimpleNamespace(pre_hook=hook, kwargs={"B": size}, all_kwargs=lambda: {"B": size, "num_warps": 4})

    def warmup(*arguments: Any, grid: object, **meta: Any) -> None:
        compiled.append((arguments[0].tile, meta))

    tuned = object.__new__(trials.Tuned)
    tuner = SimpleNamespace(arg_names=["x"], prune_configs=lambda meta: [config(16), config(32)])
    tuned.tuner, tuned.fn, tuned.coming = (
        cast(Any, tuner),
        cast(Any, SimpleNamespace(warmup=warmup)),
        ((shape,), {"C": 1}),
    )
    monkeypatch.setattr(trials, "milliseconds", lambda call, quantiles: [float(len(compiled))])
    modes: list[object] = []

    def mode(pool: object, ignore_errors: bool) -> Any:
        modes.append(pool)
        return nullcontext()

    monkeypatch.setattr(trials.triton, "AsyncCompileMode", mode)
    assert [tuned.tried(lambda: None) for _ in range(2)] == [[2.0], [2.0]]
    assert compiled == [(size, {"C": 1, "B": size, "num_warps": 4}) for size in (16, 32)]
    assert len(modes) == 1
