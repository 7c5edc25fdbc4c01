"""Options as users of TensorRT-LLM's scripts type them: words joined by - or _ alike."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import click

from ..convert.files.bounds import Option
from ..convert.prove.options import VerifyOptions

Function = TypeVar("Function", bound=Callable[..., Any])

# Of --device.
DEVICES = "auto|cpu|cuda|cuda:N"
SOURCES = (
    "a UTF-8 file, a .json, .jsonl or .parquet file or a folder of them with text, prompt and completion, or messages, "
    "or a safetensors file with input_ids"
)
# Options that more than one command has.
text = click.option(
    "--text",
    default="pydoc-heldout",
    show_default=True,
    metavar="FILE|NAME",
    help=f"Held-out text: pydoc-heldout, {SOURCES}.",
)
exclude = click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave these linears in floating point: a Hugging Face or TensorRT-LLM name of a linear or of a module around "
    "it, * standing for any characters (*.down_proj, model.layers.0). May be given several times.",
)
tokenizer_dir = click.option(
    "--tokenizer_dir", metavar="HF_DIR", help="Folder with the tokenizer. [default: --reference, else CHECKPOINT_DIR]"
)
calib = click.option(
    "--calib",
    "--calib_dataset",
    default="pydoc",
    show_default=True,
    metavar="FILE|NAME",
    help=f"Calibration text: pydoc, {SOURCES}.",
)


class Command(click.Command):
    """A command whose options may be spelled with - or _, and have a value where they are given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["words"] = [underscored(arg) for arg in args]
        rest = super().parse_args(ctx, list(ctx.meta["words"]))
        for param in self.params:
            value = ctx.params.get(param.name or "")
            if value == "" or (isinstance(value, tuple) and "" in value):
                raise click.UsageError(f"{param.opts[0]} is empty; give it a value, or leave it out")
        return rest


def underscored(arg: str) -> str:
    """--model-dir=a-b -> --model_dir=a-b; anything that is no long option stays as it is."""
    if not arg.startswith("--") or arg == "--":
        return arg
    name, equals, value = arg.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


class Value(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """The value of an option whose type and bounds a class of options states."""

    def __init__(self, option: Option):
        self.option = option
        self.name = "integer" if int in option.kinds else "float" if float in option.kinds else "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str):
            for kind in (int, float):
                if kind in self.option.kinds:
                    with suppress(ValueError):
                        value = kind(value)
                    break
        return self.option.accepted(value, f"--{self.option.item.name}")

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str | None:
        words = [str(word) for word in (self.option.rule.none, *self.option.rule.words) if word is not None]
        return f"[{'|'.join(words)}]" if words and self.name != "float" else None


def option_of(owner: type[Any], name: str, *more: str, **settings: Any) -> Callable[[Function], Function]:
    """The command line's option for a field of a class of options: its default, type, bounds and words.

    Args:
        more: other spellings.
        settings: what click.option takes, to overrule.
    """
    option = Option(owner, name)
    default = option.rule.none if option.item.default is None else option.item.default
    shown = {} if default is None else {"default": default, "show_default": True}
    return click.option(f"--{name}", *more, **{"type": Value(option), **shown, **settings})


chunks = option_of(VerifyOptions, "chunks", help="Sequences to measure on.")
seq_len = option_of(VerifyOptions, "seq_len", help="Tokens in each.")
