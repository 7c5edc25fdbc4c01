"""The files of a TensorRT-LLM checkpoint: whether each rank holds exactly what config.json implies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cache, partial

from ...plugins.lazy import torch
from ..errors import InputError, printable
from ..targets.trtllm import token_types
from ..targets.trtllm.checkpoint import Checkpoint
from ..targets.trtllm.layout import is_one, layer_tensors, rank_tensors, rotary_tables, stored_name
from ..targets.trtllm.ranks import MODEL_DTYPE, Tensor
from ..targets.trtllm.rotary_tables import faults
from ..targets.trtllm.values import POSITIVE, Values, Zeros

SAFETENSORS_DTYPES = {"I8": "int8", "F8_E4M3": "float8_e4m3fn", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# A stored tensor, by name.
Read = Callable[[str], "torch.Tensor"]


def checkpoint_problems(checkpoint: Checkpoint, values: bool = True) -> list[str]:
    """Everything wrong with the ranks' files: an empty list means that each holds exactly the tensors that config.json
    implies, with their shapes, dtypes and values that they may have.

    Args:
        values: False reads no more than the headers of files.
    """
    problems = rank_files_problems(checkpoint, values)
    return problems + (rank_disagreements(checkpoint) if values and not problems else [])


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
