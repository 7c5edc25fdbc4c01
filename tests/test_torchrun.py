"""The commands with a process for each rank: one speaks, one tells what failed; text and figures are one process's."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from .command import run
from .family_models import converted, write_family
from .triton_folders import write_tokenizer

MAIN = "from enginesmith.cli.main import main\nmain()\n"
# One rank finds what no other does.
FAILS = """
import os
from enginesmith.convert.prove import proven
if os.environ["RANK"] == "{rank}":
    def rank_layer(*_):
        raise {error}
    proven.ProvenCheckpoint.rank_layer = rank_layer
"""
MEASURED = ("--chunks", 4, "--seq_len", 24, "--device", "cpu")


@dataclass
class Ended:
    """A process."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and its checkpoint of two ranks."""
    root = tmp_path_factory.mktemp("ranks")
    model = write_family(root / "hf", "Llama, Yi, DeepSeek-LLM, SmolLM", vocab_size=400)
    write_tokenizer(model)
    converted(model, root / "ck", quant="W8A8_SQ_PER_TENSOR_PLUGIN", kv_cache="INT8", tp_size=2)
    return root


def environment(**more: object) -> dict[str, str]:
    """Of processes; each loads PyTorch, on few cores."""
    return os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in more.items()}


def ranks(*words: object, size: int = 2, before: str = "") -> list[Ended]:
    """``enginesmith`` with these words in several processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": size}
    typed = [sys.executable, "-c", before + MAIN, *map(str, words)]
    processes = [
        subprocess.Popen(
            typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(RANK=rank, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=size, **address),
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=120) for process in processes]
    return [Ended(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def test_verify_under_torchrun(folder: Path, tmp_path: Path) -> None:
    words = ("verify", folder / "ck", "--reference", folder / "hf", "--text", folder / "ids.safetensors", *MEASURED)
    program = tmp_path / "start.py"
    program.write_text(MAIN)
    typed = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(program)]
    done = subprocess.run(
        [*typed, *map(str, words), "--json"], capture_output=True, text=True, timeout=120, env=environment()
    )
    assert done.returncode == 0, done.stderr
    together, alone = json.loads(done.stdout), json.loads(run(*words, "--json").stdout)
    assert together["ok"]
    assert together["accuracy"]["perplexity"] == pytest.approx(alone["accuracy"]["perplexity"], rel=2e-3)
    assert together["accuracy"]["layer_errors"] == pytest.approx(alone["accuracy"]["layer_errors"], rel=0.05)


def test_generate(folder: Path) -> None:
    how = ("--prompt", "Hello", "--max_tokens", 8, "--dtype", "float32", "--device", "cpu")
    words = ("generate", folder / "ck", "--reference", folder / "hf", *how)
    first, second = ranks(*words)
    assert (first.code, second.code) == (0, 0)
    assert first.stdout == run(*words).stdout
    assert "8 tokens (length)" in first.stderr
    assert second.stdout + second.stderr == ""


def test_bench(folder: Path) -> None:
    words = ("--prompt_tokens", 4, "--new_tokens", 2, "--repeats", 1, "--device", "cpu", "--json")
    first, second = ranks("bench", folder / "ck", *words)
    assert (first.code, second.code) == (0, 0)
    (figures,) = json.loads(first.stdout)
    assert figures["name"] == "checkpoint, 2 ranks"
    assert figures["decode"] > 0
    assert second.stdout + second.stderr == ""


def test_a_gate_that_is_not_passed(folder: Path) -> None:
    """Only the first process says so; torchrun has nothing to end before that is said."""
    words = ("--reference", folder / "hf", "--text", folder / "ids.safetensors", *MEASURED, "--max_ppl_increase", -50)
    first, second = ranks("verify", folder / "ck", *words)
    assert (first.code, second.code) == (1, 0)
    assert "FAILED perplexity rose by" in first.stderr
    assert second.stdout + second.stderr == ""


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("generate", "CK", "--prompt", "Hello"), "tp_size is 2, but there are 3 processes (WORLD_SIZE); use torchrun"),
        (("families",), "families: only verify, generate, bench run under torchrun; start it without"),
        (("verify", "CK", "--chunks", "none"), "--chunks"),
    ],
    ids=["ranks", "command", "usage"],
)
def test_one_line_of_many_processes(words: tuple[str, ...], reason: str, folder: Path) -> None:
    tokenizer = ("--tokenizer_dir", folder / "hf") if words[0] == "generate" else ()
    ended = ranks(*(folder / "ck" if word == "CK" else word for word in words), *tokenizer, size=3)
    assert [one.code for one in ended] == [2, 2, 2]
    (line,) = "".join(one.stderr for one in ended).splitlines()
    assert reason in line
    assert "".join(one.stdout for one in ended) == ""


@pytest.mark.parametrize(
    ("rank", "error", "code"), [(1, "ValueError('no')", 70), (0, "proven.InputError('rank0: no')", 2)]
)
def test_one_that_fails_tells_why(rank: int, error: str, code: int, folder: Path) -> None:
    """The others end too, and say nothing of a connection that was closed."""
    words = ("generate", folder / "ck", "--tokenizer_dir", folder / "hf", "--prompt", "Hello", "--max_tokens", 4)
    ended = ranks(*words, before=FAILS.format(rank=rank, error=error))
    assert ended[rank].code == code
    assert ended[1 - rank].code != 0
    assert re.fullmatch(r"enginesmith: .*no.*\n", ended[rank].stderr)
    assert ended[1 - rank].stderr == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RANK": 5}, "RANK is 5, WORLD_SIZE 2; ranks count from 0: use torchrun"),
        ({"RANK": 1, "MASTER_PORT": "abc"}, "WORLD_SIZE is 2, but MASTER_ADDR and MASTER_PORT do not say where"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR and MASTER_PORT do not say where processes meet; use torchrun, or unset"),
    ],
)
def test_processes_that_could_not_meet_say_so(changes: dict[str, object], said: str, folder: Path) -> None:
    """Each by itself, at once."""
    whole = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29511}
    typed = [sys.executable, "-c", MAIN, "bench", str(folder / "ck"), "--device", "cpu"]
    done = subprocess.run(typed, capture_output=True, text=True, timeout=60, env=environment(**whole | changes))
    (line,) = done.stderr.splitlines()
    assert (done.returncode, said in line) == (2, True), line
