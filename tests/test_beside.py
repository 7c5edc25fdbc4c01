"""What goes on beside the work, as far as a CPU can see it: reading ahead, and memory that is kept."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import pytest
import torch

from enginesmith.cli import allocator
from enginesmith.convert.errors import InputError
from enginesmith.convert.sources.ahead import Ahead


class Found:
    """A tensor that says who reads it; a negative one cannot be read."""

    def __init__(self, number: int):
        self.number, self.readers = number, list[threading.Thread]()

    def read(self, pinned: bool = False) -> torch.Tensor:
        assert pinned
        self.readers.append(threading.current_thread())
        if self.number < 0:
            raise InputError("was cut while it was read")
        return torch.tensor(self.number)


def test_what_was_begun_is_read_once_in_a_thread_and_the_rest_when_it_is_taken() -> None:
    where: dict[str, Any] = {name: Found(number) for number, name in enumerate("abc")}
    ahead = Ahead(where)
    ahead.begin("ab")
    ahead.begin("ab")
    assert [int(ahead.take(name)) for name in "abc"] == [0, 1, 2]
    assert all(len(found.readers) == 1 for found in where.values())
    here = threading.current_thread()
    assert [found.readers[0] is here for found in where.values()] == [False, False, True]
    assert int(ahead.take("a")) == 0
    assert len(where["a"].readers) == 2


def test_what_cannot_be_read_is_told_where_it_is_taken() -> None:
    where: dict[str, Any] = {"a": Found(-1)}
    ahead = Ahead(where)
    ahead.begin("a")
    with pytest.raises(InputError, match="was cut"):
        ahead.take("a")


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    said = dict[int, int]()

    class Glibc:
        mallopt = staticmethod(said.__setitem__)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Glibc())
    allocator.keep_freed_memory()
    assert said == {-3: 2**25, -1: 2**30}
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    allocator.keep_freed_memory()
