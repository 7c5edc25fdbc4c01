"""float16 inside a layer: whatever an engine keeps between two operations must not leave its range."""

from __future__ import annotations

import math
from collections.abc import Iterator
from operator import itemgetter

import torch

from ..errors import InputError
from ..models.layer import Layer
from ..models.model import Model
from ..models.pieces import INTERLEAVED
from ..models.rope import table_scale
from ..statistics.layer import LayerStatistics

LARGEST = torch.finfo(torch.float16).max


def check(layer: Layer, statistics: LayerStatistics) -> None:
    """Raise InputError for the largest value that float16 does not hold.

    Args:
        layer: as it is after smoothing.
        statistics: of the layer before; what was not gathered, or is not known yet, is not looked at.
    """
    found = ((math.inf if math.isnan(largest) else largest, what) for largest, what in places(layer, statistics))
    largest, what = max(found, key=itemgetter(0), default=(0.0, ""))
    check_one(what, largest)


def check_one(what: str, largest: float) -> None:
    if not largest <= LARGEST:
        raise InputError(f"{what} reaches {largest:.3g}, beyond float16; use --dtype bfloat16")


def places(layer: Layer, statistics: LayerStatistics) -> Iterator[tuple[float, str]]:
    """(largest absolute value, what it is) of all that one layer hands from operation to operation, in that order."""
    family, seen = layer.model.family, statistics
    read = {group.norm for group in family.groups}
    for norm in [norm for norm in seen.stream_amax if norm not in read]:
        yield seen.stream_amax[norm], f"the hidden state before {norm}"
    for group in family.groups:
        if group.norm in seen.stream_amax:
            yield seen.stream_amax[group.norm], f"the hidden state before {group.norm}"
        if seen.stream_amax and group.name in seen.inputs:
            smoothed = seen.inputs[group.name].channel_amax() / layer.factors.get(group.name, 1.0)
            yield float((smoothed * layer.smoothers.get(group.name, 1.0)).max()), f"the input of {group.name}"
            yield float(smoothed.max()), f"an input of {group.name}, smoothed,"
        for part in [part for part in family.parts(group) if part in seen.output_amax]:
            stored = seen.output_amax[part] / layer.folded.get(part, 1.0)
            yield float(stored.max()), f"the output of {part}"
            if part in family.attention[:2] and family.rotary and family.query_key_norms is None:
                yield float(rotated(stored, layer.model).max()), f"the output of {part}, rotated,"


def rotated(amax: torch.Tensor, model: Model) -> torch.Tensor:
    """As far as the rotary embedding can turn two channels of a head into one. amax: [heads * head_size]."""
    turning = amax.view(-1, model.head_size)[:, : model.rotary_dim]
    sizes, axis = ((-1, 2), 2) if model.family.positions == INTERLEAVED else ((2, -1), 1)
    turned: torch.Tensor = torch.linalg.vector_norm(turning.unflatten(1, sizes), dim=axis)
    return turned * table_scale(model.rotary_scaling, model.max_position_embeddings)
