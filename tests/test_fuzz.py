"""Some thousand hostile files on every run, the same ones each time; see tests/fuzzing.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .fuzzing_kinds import KINDS

# Cases of each kind; those that start a tokenizer or a process cost more.
CASES, DEAR_CASES = 140, 20
DEAR = ("config.pbtxt of tensorrt_llm", "config.pbtxt of an ensemble", "calibration records", "recipe")


@pytest.mark.parametrize("name", KINDS)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    kind = KINDS[name](tmp_path)
    cases = DEAR_CASES if name in DEAR else CASES
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]

    @settings(max_examples=cases, derandomize=True, database=None, deadline=None, suppress_health_check=quiet)
    @given(st.data())
    def case(data: st.DataObject) -> None:
        kind.case(data.draw)

    case()
