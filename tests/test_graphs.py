"""When passes of single tokens are computed, recorded and played, without a GPU: what records is a stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from enginesmith.convert.generate.graphs import Graphs
from enginesmith.convert.generate.passes import Pass, Piece


class Recorder:
    """A network's ``compute`` and the graphs that record it; done: what was asked of them."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.recording = False

    def compute(self, now: Pass, ids: torch.Tensor) -> torch.Tensor:
        self.done.append("recorded" if self.recording else "computed")
        return ids[..., None].float()

    @contextmanager
    def graph(self, _: Any) -> Iterator[None]:
        self.recording = True
        yield
        self.recording = False

    def replay(self) -> None:
        self.done.append("played")

    def since(self) -> list[str]:
        done, self.done = self.done, []
        return done


def test_a_pass_is_computed_before_it_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the cache has moved: its size decides which kernels are compiled."""
    recorder, cache = Recorder(), SimpleNamespace(moves=1, begin=lambda now: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: recorder)
    monkeypatch.setattr(torch.cuda, "graph", recorder.graph)
    graphs: Any = Graphs(recorder.compute, cache, torch.device("cpu"))  # type: ignore[arg-type]

    def passed(rows: int) -> list[str]:
        pieces = [Piece(slot, 0, 1) for slot in range(rows)]
        assert graphs(pieces, list(range(rows))).shape == (rows, 1)
        return recorder.since()

    for _ in range(2):
        assert passed(3) == ["computed"]
        assert passed(3) == ["recorded", "played"]
        assert passed(4) == ["played"]
        assert passed(1) == ["computed"]
        assert passed(3) == ["played"]
        cache.moves += 1


def test_prompts_and_too_many_sequences_are_not_recorded() -> None:
    graphs = Graphs(Recorder().compute, SimpleNamespace(), torch.device("cpu"))  # type: ignore[arg-type]
    assert graphs.takes([Piece(slot, 5, 1) for slot in range(256)])
    assert not graphs.takes([Piece(slot, 5, 1) for slot in range(257)])
    assert not graphs.takes([Piece(0, 5, 1), Piece(1, 0, 2)])
