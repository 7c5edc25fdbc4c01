"""A comparison before any work: the algorithms that were asked for, and what can be refused of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..device import check_device
from ..errors import InputError, naming
from ..quantize.quantization import Quantization
from ..sources.folder import Source
from ..sources.text import check_length, check_text
from ..statistics.wanted import Wanted
from ..targets.trtllm.formats.base import Engine
from ..targets.trtllm.target import TensorRTLLM
from .calibration import check_calibration
from .options import ConvertOptions, check_options
from .quantization import quantization_of

NONE = "none"
# What may follow an algorithm's name after a colon, as NAME=VALUE, and how the value is read; and what stands alone.
SETTINGS: dict[str, Callable[[str], Any]] = {"rounding": str, "group_size": int, "alpha": float, "act_range": str}
SWITCHES = ("symmetric",)


class CheckedComparison:
    """A comparison that may begin.

    Attributes:
        ways: how each algorithm quantizes, and for what, by its name, in the order asked for.
        calibrates: whether any of them reads a calibration text.
        text, chunks, length: what to measure on.

    Raises:
        InputError: options, algorithms or a folder that no comparison can have.
    """

    def __init__(self, options: ConvertOptions, algorithms: list[str], text: str, chunks: int, length: int):
        check_names(algorithms)
        check_options(options)
        if options.float_budget is not None:
            raise InputError(
                "--float_budget: a comparison does not spend it; convert, and measure with enginesmith verify"
            )
        self.options, self.source = options, Source(options.model_dir)
        check_device(options.device)
        check_float(self.source)
        check_decoder(self.source)
        self.ways = {name: of_algorithm(name, options, self.source) for name in algorithms}
        self.calibrates = any(how.wanted != Wanted() for how, _ in self.ways.values())
        self.text, self.chunks, self.length = text, chunks, length
        check_length(self.source.model, length, "--seq_len")
        check_text(text, chunks, length, "--text")
        check_calibration(options, self.source.model if self.calibrates else None)


def check_decoder(source: Source) -> None:
    """Raise InputError for a model that predicts no next token."""
    if not source.model.family.predicts_tokens:
        raise InputError(
            f"{source.model.architecture} predicts no tokens, and algorithms are compared by the next one; convert "
            "with each, and verify"
        )


def check_names(algorithms: list[str]) -> None:
    """Raise InputError unless there are algorithms, each of them once."""
    if not algorithms or not all(algorithms):
        raise InputError("--quant: give algorithms separated by commas, such as W8A16,W4A16_AWQ")
    twice = next((name for name in algorithms if algorithms.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--quant: {twice} is named twice")


def check_float(source: Source) -> None:
    """Raise InputError for a folder that is quantized already."""
    if source.ready is not None:
        raise InputError(
            f"--model_dir: {source.folder} is quantized already ({source.ready.method}); a comparison needs "
            "floating-point weights: convert the folder, and measure with enginesmith verify --reference"
        )


def of_algorithm(name: str, options: ConvertOptions, source: Source) -> tuple[Quantization, TensorRTLLM]:
    """How one algorithm quantizes, and for what, its settings and kernels checked."""
    with naming(name):
        own = replace(options, **settings_of(name))
        own = replace(own, exclude=()) if own.quant is None else own
        check_options(own)
        how = quantization_of(own, source, TensorRTLLM)
        target = TensorRTLLM(how.precision, Engine(how.dtype, own.sm))
        target.check()
    return how, target


def settings_of(name: str) -> dict[str, Any]:
    """The options in an algorithm's name: W4A16_AWQ:rounding=gptq:group_size=64."""
    quant, *words = name.split(":")
    options: dict[str, Any] = {"quant": quant}
    for word in words:
        key, _, value = word.partition("=")
        try:
            options[key] = True if word in SWITCHES else SETTINGS[key](value)
        except (KeyError, ValueError):
            takes = [*(f"{setting}=..." for setting in SETTINGS), *SWITCHES]
            raise InputError(f"{word!r} is no setting of an algorithm here; these are: {', '.join(takes)}") from None
    return options
