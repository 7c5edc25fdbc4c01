"""The ``enginesmith`` command."""

from __future__ import annotations

import os
import sys

import click

from ..convert.errors import InputError
from .convert import convert
from .triton import triton
from .verify import verify

DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="enginesmith")
def cli() -> None:
    """Hugging Face models to quantized TensorRT-LLM checkpoints that are proven right.

    Exit codes: 0 done, 1 an accuracy or structure check failed, 2 bad usage or bad input.
    """


cli.add_command(convert)
cli.add_command(verify)
cli.add_command(triton)


def main() -> None:
    """Run the command; every expected error is one line on standard error."""
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(BAD_INPUT)
    except click.ClickException as error:
        fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        print("enginesmith: interrupted; nothing was written", file=sys.stderr)
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
