"""Options as users of TensorRT-LLM's scripts type them: words joined by - or _ alike."""

from __future__ import annotations

from types import FrameType

import click


class Command(click.Command):
    """A command whose options may be spelled with - or _."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["words"] = [underscored(arg) for arg in args]
        return super().parse_args(ctx, list(ctx.meta["words"]))


def underscored(arg: str) -> str:
    """--model-dir=a-b -> --model_dir=a-b; anything that is no long option stays as it is."""
    if not arg.startswith("--") or arg == "--":
        return arg
    name, equals, value = arg.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def interrupt(signal_number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a command the way Ctrl-C does, leaving nothing half-written."""
    raise KeyboardInterrupt
