"""Is a checkpoint right? Its structure first, then what its integers compute against the source model."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..device import check_device, pick_device
from ..errors import InputError
from ..files.disk import sha256
from ..models.model import Model
from ..sources.folder import Source
from ..sources.text import check_length, check_text

if TYPE_CHECKING:
    from .encoders import EncoderAccuracy
    from .execution import Accuracy
    from .proven import Proven

Measured = TypeVar("Measured")
# (layer, phase)
OnProgress = Callable[[int, str], None]


def structure_problems(
    checkpoint: Proven, values: bool = True, changed: Callable[[], list[str]] | None = None
) -> list[str]:
    """Everything wrong with a folder's files; an empty list means that they hold exactly the tensors that their
    configuration implies, with values that they may have, and that files are the ones the manifest recorded.

    Args:
        values: False reads no more than the headers of files.
        changed: finds files that are not the recorded ones, where somebody has begun to hash them.
    """
    problems = checkpoint.problems(values)
    return problems + (changed or checkpoint.manifest.problems)() if values else problems


def idle_beside(device: str) -> bool:
    """Whether the CPU has nothing to do while a checkpoint is executed."""
    return pick_device(device).type != "cpu"


def both(
    pool: ThreadPoolExecutor, wrong: Callable[[], list[str]], measured: Callable[[], Measured]
) -> tuple[list[str], Measured | None]:
    """What is wrong with files, found while they are executed; and what that measured, unless something is.

    Raises:
        InputError: of the first, else of the second where nothing is wrong.
    """
    found = pool.submit(wrong)
    try:
        accuracy = measured()
    except Exception:
        problems = found.result()
        if not problems:
            raise
        return problems, None
    problems = found.result()
    return problems, None if problems else accuracy


class Sized(Protocol):
    """Whatever has a model."""

    model: Model


def check_same_model(checkpoint: Sized, source: Sized) -> None:
    """Raise InputError unless the model that a checkpoint was made from is as large as this source."""
    for name in ("engine_class", "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"):
        ours, theirs = getattr(checkpoint.model, name), getattr(source.model, name)
        if ours != theirs:
            raise InputError(f"--reference: {name} is {theirs}, the checkpoint's is {ours}; give its source model")


def check_same_files(checkpoint: Proven, source: Source) -> None:
    """Raise InputError unless a source's files are the ones that the checkpoint's manifest recorded, if it did."""
    recorded = checkpoint.manifest.source
    files = [file for file in source.paths() if file.name in recorded]
    with ThreadPoolExecutor() as pool:
        for file, digest in zip(files, pool.map(sha256, files), strict=True):
            if recorded[file.name] != digest:
                raise InputError(
                    f"--reference: {file.name} is not the file that the checkpoint was made from; give the folder that "
                    "--model_dir named, also where it was quantized already"
                )


def reference_of(checkpoint: Proven, reference: str | Path, text: str, chunks: int, length: int, device: str) -> Source:
    """The source model to measure a checkpoint beside, once nothing that is asked for is refused without looking at
    weights or a text.

    Raises:
        InputError: the reference is another model, or the text or device cannot be used.
    """
    check_device(device)
    source = Source(reference, "--reference")
    check_same_model(checkpoint, source)
    window = checkpoint.sliding_window
    if window is not None and length > window:
        raise InputError(f"--seq_len {length} is longer than the sliding window of {window} tokens; give at most that")
    check_length(source.model, length, "--seq_len")
    check_text(text, chunks, length, "--text")
    return source


def measure(
    checkpoint: Proven,
    reference: str | Path,
    text: str = "pydoc-heldout",
    chunks: int = 20,
    length: int = 512,
    device: str = "auto",
    on_progress: OnProgress = lambda layer, phase: None,
) -> Accuracy | EncoderAccuracy:
    """Run checkpoint and float32 source model side by side over ``chunks`` pieces of ``length`` tokens.

    Raises:
        InputError: the reference is another model, or the text or device cannot be used.
    """
    source = reference_of(checkpoint, reference, text, chunks, length, device)
    check_same_files(checkpoint, source)
    return measure_beside(checkpoint, source, text, chunks, length, device, on_progress)


def measure_beside(
    checkpoint: Proven, source: Source, text: str, chunks: int, length: int, device: str, on_progress: OnProgress
) -> Accuracy | EncoderAccuracy:
    """``measure``, of what ``reference_of`` gave."""
    from .execution import held_out, side_by_side

    ids = held_out(source, text, chunks, length)
    return side_by_side(checkpoint, source, ids, checkpoint.peers.device(device), on_progress)


def summary(accuracy: Accuracy | EncoderAccuracy | None, problems: list[str]) -> dict[str, Any]:
    """The verdict as one JSON object."""
    result: dict[str, Any] = {"structure": {"ok": not problems, "problems": problems}}
    if accuracy is not None:
        result["accuracy"] = figures(accuracy)
    return result


def figures(accuracy: Accuracy | EncoderAccuracy) -> dict[str, Any]:
    """An accuracy as one JSON object."""
    values = {
        "tokens": accuracy.tokens,
        **accuracy.own_figures,
        "mean_kl": accuracy.kl,
        "top1_agreement": accuracy.top1,
        "layer_errors": accuracy.layer_errors,
        "beyond_range": accuracy.beyond,
        "few_tokens_error": accuracy.few_tokens_error,
        "many_tokens_error": accuracy.many_tokens_error,
    }
    return {name: finite(value) for name, value in values.items() if value is not None}


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_gate(model: Model, limit: float | None) -> None:
    """Raise InputError for a gate of ``limit`` percent more perplexity where a model has none."""
    if limit is not None and not model.family.predicts_tokens:
        raise InputError(
            f"--max_ppl_increase: {model.architecture} predicts no tokens and has no perplexity; give --max_distance"
        )


def accuracy_failures(
    accuracy: Accuracy | EncoderAccuracy | None, limit: float | None, most: float | None = None
) -> list[str]:
    """What fails a gate of ``limit`` percent more perplexity, or of ``most`` percent of distance; without one, only
    what is no number."""
    return [] if accuracy is None else gate_failures(figures(accuracy), limit, most)


def gate_failures(figures: dict[str, Any], limit: float | None, most: float | None = None) -> list[str]:
    """``accuracy_failures`` of the JSON object that ``figures`` made; an empty one has no perplexity."""
    perplexity, increase = figures.get("perplexity"), figures.get("ppl_increase_percent")
    if figures.get("beyond_range"):
        return [f"{figures['beyond_range']}; convert with --dtype bfloat16"]
    errors = figures.get("layer_errors")
    distance = 100 * errors[-1] if errors and errors[-1] is not None else None
    if "distance_percent" in figures:
        return distance_failures(distance, most)
    if perplexity is None or increase is None or not math.isfinite(perplexity):
        return [f"perplexity is {perplexity}"]
    if figures.get("mean_kl") is None:
        return ["the divergence from the source is no number"]
    if limit is not None and not increase <= limit:
        return [f"perplexity rose by {increase:.2f} %, more than --max_ppl_increase {limit:g}"]
    return [] if most is None else distance_failures(distance, most)


def distance_failures(distance: float | None, most: float | None) -> list[str]:
    """What fails a gate on the distance of hidden states, in percent of the source's."""
    if distance is None:
        return ["the distance from the source is no number"]
    if most is not None and distance > most:
        return [f"hidden states are {distance:.3g} % off the source's, more than --max_distance {most:g} %"]
    return []
