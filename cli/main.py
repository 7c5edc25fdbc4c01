"""The ``enginesmith`` command."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from importlib import import_module

import click

from ..convert.errors import LINE, InputError, printable
from .allocator import keep_freed_memory
from .streams import Interrupts, OutputLost, standard_streams
from .voice import check_together, ending, leave, one_voice

# Exit codes; 1, a check that failed, is given by the commands that check.
DONE, BAD_INPUT, INTERNAL, OUTPUT_LOST, INTERRUPTED = 0, 2, 70, 74, 130
PREFIX = "enginesmith: "
# Each lives in the module of its name, imported when it is called: planning a build needs no PyTorch.
COMMANDS = {
    "convert": "Convert a Hugging Face folder into a checkpoint for TensorRT-LLM, or for another runtime.",
    "families": "List the models that can be converted.",
    "verify": "Check a checkpoint's structure, and its accuracy by executing it.",
    "generate": "Continue prompts with a checkpoint, executed without TensorRT.",
    "bench": "Time how a checkpoint reads prompts and continues them, its float source beside it.",
    "evaluate": "Have a checkpoint answer lm-evaluation-harness's tasks, and its source beside.",
    "compare": "Compare quantizations of a model, without writing any.",
    "plugins": "Show which TensorRT-LLM plugins a checkpoint's engine uses, and where.",
    "build": "Plan the engines of a checkpoint for a GPU and a workload, and build them.",
    "triton": "Make a Triton model repository that serves an engine, or check one.",
    "run": "Run a release recipe: convert, verify, plan, build, triton.",
    "check": "Say which runtimes read a folder right, refuse it, or misread it.",
    "check-engine": "Say whether an engine can run on this machine, or why not.",
}


class Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = name.replace("-", "_")
        command = getattr(import_module(f"..{module}", __name__), module)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="enginesmith")
@click.pass_context
def cli(context: click.Context) -> None:
    """Hugging Face models to quantized TensorRT-LLM checkpoints that are proven right, to engines, to Triton.

    Exit codes: 0 done, 1 a check failed, 2 bad usage or bad input, 70 an internal error, 74 standard output could not
    be written, 130 interrupted (Ctrl-C, SIGTERM, SIGHUP). Errors are one line on standard error.
    """
    check_together(context.invoked_subcommand)


def main() -> None:
    """Run the command; every error is one line on standard error, and has an exit code of its own kind."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    keep_freed_memory()
    with standard_streams(), one_voice() as voice, Interrupts(ending()) as interrupts, warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        try:
            code, line = outcome(sys.argv[1:])
        except (click.Abort, KeyboardInterrupt):
            interrupts.came, code = True, INTERRUPTED
        except BaseException as error:
            if os.environ.get("ENGINESMITH_TRACEBACK"):
                traceback.print_exc(file=voice)
            what = printable(f"{type(error).__name__} {error}", LINE // 2)
            code, line = INTERNAL, f"internal error, {what}; with ENGINESMITH_TRACEBACK=1 it tells where"
        if interrupts.came and code != DONE:
            code, line = INTERRUPTED, "interrupted; nothing unfinished stands under its name"
        leave(code, f"{PREFIX}{printable(line, LINE - len(PREFIX))}" if line else "", voice)
    sys.exit(code)


def outcome(words: list[str]) -> tuple[int, str]:
    """Run a command; its exit code, and what is to be said of a failure."""
    try:
        try:
            with cli.make_context("enginesmith", words) as context:
                cli.invoke(context)
        finally:
            sys.stdout.flush()
    except click.exceptions.Exit as ended:
        return ended.exit_code, ""
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return BAD_INPUT, ""
    except click.ClickException as error:
        return BAD_INPUT, error.format_message()
    except InputError as error:
        return BAD_INPUT, str(error)
    except OutputLost as lost:
        return OUTPUT_LOST, str(lost)
    except OSError as error:
        return BAD_INPUT, f"{error.filename or 'a file cannot be used'}: {error.strerror or error}"
    return DONE, ""
