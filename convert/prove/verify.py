"""Is a checkpoint right? Its structure first, then what its integers compute against the source model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...plugins.lazy import torch
from ..device import check_device, pick_device
from ..errors import InputError, printable
from ..files.disk import sha256
from ..models.model import Model
from ..sources.folder import Source
from ..sources.text import check_length, check_text
from ..targets.trtllm import token_types
from ..targets.trtllm.checkpoint import Checkpoint
from ..targets.trtllm.layout import is_one, layer_tensors, rank_tensors, rotary_tables, stored_name
from ..targets.trtllm.ranks import MODEL_DTYPE, Tensor
from ..targets.trtllm.rotary_tables import faults
from ..targets.trtllm.values import POSITIVE, Values, Zeros

if TYPE_CHECKING:
    from .encoders import EncoderAccuracy
    from .execution import Accuracy

SAFETENSORS_DTYPES = {"I8": "int8", "F8_E4M3": "float8_e4m3fn", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# (layer, phase)
OnProgress = Callable[[int, str], None]
# A stored tensor, by name.
Read = Callable[[str], "torch.Tensor"]


def structure_problems(
    checkpoint: Checkpoint, values: bool = True, changed: Callable[[], list[str]] | None = None
) -> list[str]:
    """Everything wrong with a checkpoint's files; an empty list means that each rank holds exactly the tensors
    that config.json implies, with their shapes, dtypes and values that they may have, and that files are the ones the
    manifest recorded.

    Args:
        values: False reads no more than the headers of files.
        changed: finds files that are not the recorded ones, where somebody has begun to hash them.
    """
    problems = rank_files_problems(checkpoint, values)
    if not values:
        return problems
    if not problems:
        problems += rank_disagreements(checkpoint)
    return problems + (changed or checkpoint.manifest.problems)()


def rank_files_problems(checkpoint: Checkpoint, values: bool) -> list[str]:
    """What is wrong with each rank's file by itself, and with how many there are."""
    problems: list[str] = []
    world = checkpoint.mapping.world_size
    for path in sorted(checkpoint.folder.glob("rank*.safetensors")):
        if path not in [checkpoint.rank_file(rank) for rank in range(world)]:
            problems.append(f"{path.name}: config.json's mapping has only {world} ranks")
    for rank in range(world):
        path = checkpoint.rank_file(rank)
        if not path.is_file():
            problems.append(f"{path.name}: missing")
            continue
        try:
            problems += rank_problems(checkpoint, rank, values)
        except InputError as error:
            problems.append(str(error))
    return problems


def rank_disagreements(checkpoint: Checkpoint) -> list[str]:
    """What ranks hold in common must be the same on all of them."""
    problems = []
    behind = checkpoint.final_norm if checkpoint.model.family.task is None else checkpoint.encoder_head
    reads: list[Callable[[], object]] = [checkpoint.embedding, behind]
    reads += [partial(checkpoint.layer, index) for index in range(checkpoint.model.num_hidden_layers)]
    for read in reads if checkpoint.mapping.tp_size > 1 else []:
        try:
            read()
        except InputError as error:
            problems.append(str(error))
    return problems


def rank_problems(checkpoint: Checkpoint, rank: int, values: bool) -> list[str]:
    """What is wrong with one rank's file: its tensors' names, shapes and dtypes, then what they hold if ``values``."""
    path = checkpoint.rank_file(rank)
    wanted = rank_tensors(checkpoint.precision, checkpoint.mapping, rank, checkpoint.engine, checkpoint.embedding_axis)
    tables = rotary_tables(checkpoint.model)
    known = tables | wanted
    forms = checkpoint.shard(rank).forms()
    found = {name: (shape, SAFETENSORS_DTYPES.get(dtype, dtype)) for name, (shape, dtype) in forms.items()}
    problems = dict.fromkeys(wanted.keys() - found.keys(), "is missing")
    problems |= dict.fromkeys(found.keys() - known.keys(), "is not one that config.json implies")
    for name in known.keys() & found.keys():
        if found[name] != known[name]:
            shape, dtype = found[name]
            problems[name] = f"is {dtype} {shape}, config.json implies {known[name]}"
    sound = found.keys() - problems.keys() if values else set[str]()
    read, specs = partial(checkpoint.read, rank), defaultdict(lambda: OUTSIDE, rank_specs(checkpoint, rank))
    for name in sorted(sound - tables.keys(), key=lambda name: isinstance(specs[name].values, Zeros)):
        problem = value_problem(name, specs[name], read, lambda scale: scale in sound and scale not in problems)
        if problem is not None:  # zeros come last, for they need scales
            problems[name] = problem
    problems |= faults({name: read(name) for name in sound & tables.keys()}, checkpoint.model)
    return [f"{path.name}: tensor {printable(name, 120)} {problem}" for name, problem in sorted(problems.items())]


# A tensor outside the decoder layers: the embedding, the final norm, lm_head.
OUTSIDE = Tensor((), MODEL_DTYPE)


def value_problem(name: str, spec: Tensor, read: Read, sound: Callable[[str], bool]) -> str | None:
    """What is wrong with the values of a tensor of the right shape and dtype; None where nothing is.

    Args:
        read: gives a tensor by its name, as it is stored.
        sound: whether nothing is wrong with a tensor so far, by its name.
    """
    values = spec.values

    def unpack(stored: torch.Tensor) -> torch.Tensor:
        if is_one(spec):
            return spec.storage.read(stored)
        return torch.stack([spec.storage.read(one) for one in stored])

    if values is None:
        return None
    if isinstance(values, Values):
        return values.problem(unpack(read(name)))
    scale = f"{name.rpartition('.')[0]}.{values.scale}"
    return values.problem(unpack(read(name)), unpack(read(scale))) if sound(scale) else None


def rank_specs(checkpoint: Checkpoint, rank: int) -> dict[str, Tensor]:
    """The tensors of one rank's decoder layers, by name."""
    kept = checkpoint.engine, checkpoint.precision.kv_cache
    specs = cache(lambda *schemes: layer_tensors(checkpoint.model, dict(schemes), *kept))
    scales = {token_types.names(checkpoint.precision)[1]: Tensor((), MODEL_DTYPE, POSITIVE)}
    return scales | {
        checkpoint.model.family.engine_layer.format(i=local) + stored_name(name, spec): spec
        for local, index in enumerate(checkpoint.stages[rank // checkpoint.mapping.tp_size])
        for name, spec in specs(*checkpoint.precision.executed(index).items()).items()
    }


def check_same_model(checkpoint: Checkpoint, source: Source) -> None:
    """Raise InputError unless the model that a checkpoint was made from is as large as this source."""
    for name in ("engine_class", "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"):
        ours, theirs = getattr(checkpoint.model, name), getattr(source.model, name)
        if ours != theirs:
            raise InputError(f"--reference: {name} is {theirs}, the checkpoint's is {ours}; give its source model")


def check_same_files(checkpoint: Checkpoint, source: Source) -> None:
    """Raise InputError unless a source's files are the ones that the checkpoint's manifest recorded, if it did."""
    recorded = checkpoint.manifest.source
    files = [file for file in source.paths() if file.name in recorded]
    with ThreadPoolExecutor() as pool:
        for file, digest in zip(files, pool.map(sha256, files), strict=True):
            if recorded[file.name] != digest:
                raise InputError(f"--reference: {file.name} is not the file that the checkpoint was made from")


def reference_of(
    checkpoint: Checkpoint, reference: str | Path, text: str, chunks: int, length: int, device: str
) -> Source:
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
    checkpoint: Checkpoint,
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
    checkpoint: Checkpoint, source: Source, text: str, chunks: int, length: int, device: str, on_progress: OnProgress
) -> Accuracy | EncoderAccuracy:
    """``measure``, of what ``reference_of`` gave."""
    from .execution import held_out, side_by_side

    ids = held_out(source, text, chunks, length)
    return side_by_side(checkpoint, source, ids, pick_device(device), on_progress)


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
