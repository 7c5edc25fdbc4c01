"""What a person sees: progress on standard error, tables on standard output."""

from __future__ import annotations

import math
import sys
import time
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..convert.prove.encoders import EncoderAccuracy
    from ..convert.prove.execution import Accuracy

SHOWN_LAYERS = 5
# Seconds between progress lines where standard error is no terminal.
PLAIN_INTERVAL = 10.0


class Bar:
    """A progress bar over decoder layers: layer, phase, rate, time left; plain lines into a log file."""

    def __init__(self, title: str, layers: int, quiet: bool = False):
        self.title, self.layers, self.quiet = title, layers, quiet
        self.live = sys.stderr.isatty() and not quiet
        self.tokens, self.start, self.printed = 0, time.monotonic(), time.monotonic()
        self.progress = drawn_bar() if self.live else None

    def __enter__(self) -> Bar:
        if self.progress is not None:
            self.task = self.progress.add_task(self.title, total=self.layers, phase="", rate="")
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.stop()

    def update(self, layer: int, phase: str, tokens: int = 0) -> None:
        """One step: the layer it is at, what it does there, and tokens that went through a layer."""
        self.tokens += tokens
        now = time.monotonic()
        rate = f"{self.tokens / max(now - self.start, 1e-9):,.0f} layer-tokens/s" if self.tokens else ""
        if self.progress is not None:
            self.progress.update(self.task, completed=max(layer, 0), phase=phase, rate=rate)
        elif not self.quiet and now - self.printed >= PLAIN_INTERVAL:
            self.printed = now
            left = (now - self.start) / max(layer, 1) * (self.layers - layer)
            print(
                f"{self.title}: layer {max(layer, 0)}/{self.layers} {phase} {rate} {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


def drawn_bar() -> Progress:
    """The bar that a terminal shows."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[phase]:<9} {task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=Console(stderr=True),
    )


def print_accuracy(accuracy: Accuracy | EncoderAccuracy) -> None:
    """The verdict of a verification as a table, and the layers that add most to the error."""
    from rich.console import Console
    from rich.table import Table

    from ..convert.prove.execution import Accuracy

    table = Table(title=f"on {accuracy.tokens:,} held-out tokens")
    table.add_column("")
    table.add_column("source (float32)", justify="right")
    table.add_column("checkpoint", justify="right")
    if isinstance(accuracy, Accuracy):
        table.add_row("perplexity", f"{accuracy.reference_perplexity:.4f}", f"{accuracy.perplexity:.4f}")
        table.add_row("increase", "", f"{accuracy.increase_percent:+.2f} %")
    else:
        table.add_row("distance of hidden states", "", f"{100 * accuracy.distance:.2f} %")
        table.add_row("mean cosine", "", f"{accuracy.cosine:.6f}")
    if accuracy.kl is not None and accuracy.top1 is not None:
        table.add_row("mean KL", "", f"{accuracy.kl:.5f} nats")
        table.add_row("top-1 agreement", "", f"{100 * accuracy.top1:.2f} %")
    errors = [0.0, *accuracy.layer_errors]  # before the first layer, and after each
    for place, layer in enumerate(adding_most(accuracy)[:SHOWN_LAYERS]):
        name = f"error, layer {layer}" + ("" if place else " (adds most)")
        table.add_row(name, "", f"{100 * errors[layer]:.2f} to {100 * errors[layer + 1]:.2f} %")
    Console().print(table)


def adding_most(accuracy: Accuracy | EncoderAccuracy) -> list[int]:
    """The layers that add to the error, those that add most first.

    A layer adds the growth of the squared relative error. That is approximate: each error is relative to the source's
    hidden states at that layer, which grow too, and a layer also amplifies or cancels what it is given.
    """
    squares = [error * error if math.isfinite(error) else math.inf for error in [0.0, *accuracy.layer_errors]]
    growth = [after - before for before, after in pairwise(squares)]
    return sorted((layer for layer, grown in enumerate(growth) if grown > 0), key=lambda layer: -growth[layer])
