"""The ``enginesmith`` command."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from ..convert.errors import InputError

DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130
# Each lives in the module of its name, imported when it is called: planning a build needs no PyTorch.
COMMANDS = {
    "convert": "Convert a Hugging Face folder into a TensorRT-LLM checkpoint.",
    "verify": "Check a checkpoint's structure, and its accuracy by executing it.",
    "compare": "Compare quantizations of a model, without writing any.",
    "plugins": "Show which TensorRT-LLM plugins a checkpoint's engine uses, and where.",
    "build": "Plan the engines of a checkpoint for a GPU and a workload, and build them.",
    "triton": "Make a Triton model repository that serves an engine, or check one.",
    "run": "Run a release recipe: convert, verify, plan, build, triton.",
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
def cli() -> None:
    """Hugging Face models to quantized TensorRT-LLM checkpoints that are proven right, to engines, to Triton.

    Exit codes: 0 done, 1 a check failed, 2 bad usage or bad input.
    """


def main() -> None:
    """Run the command; every expected error is one line on standard error."""
    try:
        code = cli.main(prog_name="enginesmith", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(BAD_INPUT)
    except click.ClickException as error:
        fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        print("enginesmith: interrupted; nothing unfinished stands under its name", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except InputError as error:
        fail(str(error))
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (standard output may be what failed)
        fail(f"{error.filename or 'standard output'}: {error.strerror}")
    sys.exit(code if isinstance(code, int) else DONE)


def fail(message: str) -> None:
    print(f"enginesmith: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(BAD_INPUT)
