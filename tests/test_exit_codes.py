"""What the exit code says: 0 done, 1 a check failed and nothing else, 2 bad input, 70 our fault, 74 output lost, 130
interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from enginesmith.build import checkpoint_folder, engines
from enginesmith.cli import main as cli
from enginesmith.cli.streams import Stream
from enginesmith.convert.errors import LINE, InputError
from tests.build_folders import write_checkpoint
from tests.command import run

Tiny = Callable[..., Path]
PROGRAM = [sys.executable, "-c", "from enginesmith.cli.main import main; main()"]
LOST = "enginesmith: standard output cannot be written"


def shell(words: list[object], redirected: str, unbuffered: bool = False) -> subprocess.CompletedProcess[str]:
    """A command in a shell that sends its output elsewhere; the exit code is the command's own."""
    line = f'set -o pipefail; "$@" {redirected}'
    environment = {**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""}
    command = ["bash", "-c", line, "bash", *PROGRAM, *map(str, words)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("redirected", [">&-", ">/dev/full", "| sleep 0"])
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["plugins"], ["build", "--help"]])
def test_output_that_is_lost(words: list[object], redirected: str, unbuffered: bool, tmp_path: Path) -> None:
    if words == ["plugins"]:
        known = {"architecture": "LlamaForCausalLM", "hidden_act": "silu", "position_embedding_type": "rope_gpt_neox"}
        words = ["plugins", write_checkpoint(tmp_path / "ck", **known)]
    if redirected.startswith("|"):  # a reader that is gone before anything is written
        gone, pipe = os.pipe()
        os.close(gone)
        done = subprocess.run([*PROGRAM, *map(str, words)], stdout=pipe, stderr=subprocess.PIPE, text=True)
        os.close(pipe)
    else:
        done = shell(words, redirected, unbuffered)
    assert done.returncode == 74, done.stderr
    assert done.stderr.startswith(LOST)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", "2>&- >&- <&-", "<&-"])
def test_a_refusal_whose_line_is_lost_is_a_refusal(redirected: str) -> None:
    assert shell(["verify", "/no/where"], redirected).returncode == 2
    assert shell(["nonsense"], redirected).returncode == 2


def test_progress_that_is_lost_stops_nothing(tiny: Tiny, tmp_path: Path) -> None:
    for name, redirected in (("a", "2>&-"), ("b", "2>/dev/full"), ("c", "<&-")):
        words: list[object] = ["convert", "--model_dir", tiny(num_hidden_layers=1), "--output_dir", tmp_path / name]
        done = shell(words, redirected)
        assert done.returncode == 0
        assert "1 rank" in done.stdout


def test_a_closed_stream_is_no_place_for_a_file(tiny: Tiny, tmp_path: Path) -> None:
    """Where 0, 1 and 2 are free, the first files opened would get them, and whatever is printed would go there."""
    words: list[object] = ["convert", "--model_dir", tiny(num_hidden_layers=1), "--output_dir", tmp_path / "out"]
    assert shell(words, ">&- 2>&- <&-").returncode == 74
    assert run("verify", tmp_path / "out").stdout


def test_a_stream_that_was_closed_has_no_descriptor() -> None:
    with pytest.raises(OSError, match="there is no such stream"):
        Stream(None, matters=True).fileno()


@pytest.mark.parametrize(
    "fault",
    [ValueError("odd"), SystemExit(1), MemoryError(), BaseException("a panic of a library"), KeyError("x" * 9999)],
)
def test_what_nobody_foresaw_is_no_verdict(
    fault: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def break_down(*_: object) -> None:
        raise fault

    monkeypatch.setattr(checkpoint_folder.CheckpointFolder, "__init__", break_down)
    done = run("plugins", tmp_path, expect=70)
    assert done.stderr.startswith(f"enginesmith: internal error, {type(fault).__name__}")
    assert "ENGINESMITH_TRACEBACK=1" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert len(done.stderr) <= LINE + 1
    monkeypatch.setenv("ENGINESMITH_TRACEBACK", "1")
    assert "in break_down" in run("plugins", tmp_path, expect=70).stderr


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (OSError("of another language, without a number"), "a file cannot be used: of another language"),
        (OSError(5, "Input/output error"), "a file cannot be used: Input/output error"),
        (PermissionError(13, "Permission denied", "/etc/shadow"), "/etc/shadow: Permission denied"),
        (InputError("a\n\x1b[31mb\0c " + "x" * 10**6), "a ?[31mb?c xxx"),
        (BrokenPipeError(32, "Broken pipe"), "a file cannot be used: Broken pipe"),
    ],
)
def test_faults_of_files_are_one_line(
    fault: Exception, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def break_down(*_: object) -> None:
        raise fault

    monkeypatch.setattr(checkpoint_folder.CheckpointFolder, "__init__", break_down)
    done = run("plugins", tmp_path, expect=2)
    assert done.stderr.startswith(f"enginesmith: {line}")
    assert len(done.stderr) <= LINE + 1
    assert done.stderr.strip().isprintable()


def test_usage_errors_are_short(tmp_path: Path) -> None:
    for words in (["convert", "--" + "x" * 9999], ["y\x1b" * 9999], ["plugins", tmp_path, "--rank", "9" * 9999]):
        done = run(*words, expect=2)
        assert len(done.stderr) <= LINE + 1
        assert done.stderr.strip().isprintable()


def test_an_empty_value_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    words = ["convert", "--model_dir", tiny(), "--output_dir", tmp_path / "out"]
    for flag in ("--save_stats", "--stats", "--calib", "--exclude"):
        assert f"{flag} is empty" in run(*words, flag, "", expect=2).stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_that_becomes_another_error(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where C code is at work: what it raises then says nothing of the interrupt, or that a check failed."""
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("started by nohup, whose programs take no notice of it")
    for fault in (
        ValueError("could not determine the shape"),
        InputError("no checkpoint"),
        cli.click.exceptions.Exit(1),
    ):

        def interrupted(*_: object, fault: Exception = fault) -> None:
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            except KeyboardInterrupt:
                raise fault from None

        monkeypatch.setattr(checkpoint_folder.CheckpointFolder, "__init__", interrupted)
        done = run("plugins", tmp_path, expect=130)
        assert done.stderr == "enginesmith: interrupted; nothing unfinished stands under its name\n"


@pytest.mark.parametrize("command", ["verify", "triton", "plugins", "check", "check-engine"])
def test_sigterm_ends_every_command_alike(command: str, tmp_path: Path) -> None:
    """Those too that wait: here for a named pipe, or for a process of theirs."""
    waiting = (
        "import sys, time; import enginesmith.cli.main as m\n"
        f"m.Commands.get_command = lambda self, ctx, name: m.click.Command(name, callback=lambda: print('here', "
        f"file=sys.stderr, flush=True) or time.sleep(60))\n"
        f"sys.argv = ['enginesmith', '{command}']; m.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", waiting], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "here\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    assert process.stderr.read() == "enginesmith: interrupted; nothing unfinished stands under its name\n"


def test_help_documents_the_codes() -> None:
    shown = " ".join(run("--help").stdout.split())
    for words in (
        "0 done",
        "1 a check failed",
        "2 bad usage or bad input",
        "70 an",
        "74 standard output",
        "130 interr",
    ):
        assert words in shown


def test_signals_that_were_ignored_stay_so() -> None:
    """A command in the background of a shell is not ended by Ctrl-C, one under nohup not by its terminal's end."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cli.Interrupts():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_folder_that_is_no_engine_is_not_of_the_plan(tmp_path: Path) -> None:
    for text in ("null", "[]", '{"plan_digest": 5}', "\udcff"):
        (tmp_path / "enginesmith.json").write_text(text, errors="surrogateescape")
        assert engines.is_of(tmp_path, tmp_path) is False
