"""--float_budget: a pass over the model before the conversion, which says what stays in floating point."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from ..models.layer import Tensors
from ..prove.sensitivity import parts_of_model
from ..quantize.budget import Spent
from ..statistics.file import Origin, StatisticsFile, saving
from ..statistics.layer import LayerStatistics
from ..statistics.stream import Calibration
from .making import Making
from .progress import OnProgress


def spend(making: Making, percent: float, path: Path, origin: Origin, on_progress: OnProgress) -> None:
    """Leave the parts in floating point that a budget is best spent on; statistics stay in a file for the conversion.

    Args:
        path: of that file; none is made where there is one, or where layers are quantized on the way.
        origin: what it says of itself.
    """
    assert making.tokens is not None
    keeps, embedding = not (making.saved or making.requantized), making.embedding()
    calibration = None
    if making.saved is None:
        plain = making.quantizer.how.plain
        args = making.model, making.tokens.ids, embedding, making.gathered, making.device, making.options.seed
        calibration = Calibration(*args, plain=plain)
    with saving(path, "--float_budget", making.model, origin) if keeps else nullcontext() as save:

        def statistics(index: int, tensors: Tensors) -> LayerStatistics:
            seen = making.seen(index, tensors, calibration, on_progress)
            if save is not None:
                save(index, seen)
            on_progress(index, "measure", 0)
            return seen

        parts = parts_of_model(
            making.quantizer, making.target, making.source, embedding, making.tokens.ids, making.device, statistics
        )
    if keeps:
        making.saved = StatisticsFile(path, making.model, making.device)
    making.leave(Spent.on(parts, percent))
