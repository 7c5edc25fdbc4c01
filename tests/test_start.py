"""What answers at once: help, refusals, plans; none of it imports PyTorch or transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .starts import STARTS, Start, write_folders

# Their import fails. The programs in a Triton repository, a word of which --check reads, begin with numpy.
HEAVY = ("torch", "transformers", "safetensors")
CODE = """
import sys
sys.modules.update(dict.fromkeys({heavy}))
from enginesmith.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("starts")
    write_folders(root)
    return root


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.words or "nothing typed")
def test_it_answers_without_pytorch(start: Start, folders: Path) -> None:
    heavy = HEAVY if start.words.startswith("triton") else (*HEAVY, "numpy")
    command = [sys.executable, "-c", CODE.format(heavy=heavy), *start.words.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folders)
    assert start.said in done.stdout + done.stderr
    assert done.returncode == start.code, done.stderr
    assert not (folders / "out").exists()
