"""Which tensors a quantized linear consists of, as the makers of each format write them, and what a folder lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .findings import Finding, Findings, some
from .folder import CACHE_SCALES, FLOATS, Linear

# Shapes: of a linear [out, in] whose input is cut into groups.
MATRIX, NUMBER, ROWS, COLUMN, GROUPS, INPUTS, ANY = "matrix", "number", "rows", "column", "groups", "inputs", "any"
Size = Callable[[list[int]], tuple[int, int]]
INT8, FLOAT8, BYTES, WORDS = "I8", "F8_E4M3", "U8", "I32"
# What belongs to a linear whatever its format, or has rules of its own.
BESIDES = frozenset(("bias", "pre_quant_scale", *CACHE_SCALES))


@dataclass(frozen=True)
class Wanted:
    """A tensor that a linear of some format has."""

    dtypes: tuple[str, ...]
    shape: str
    optional: bool = False


@dataclass(frozen=True)
class Layout:
    """The tensors of a linear, by last name.

    Attributes:
        weight: the one that holds its integers or FP8 values; size: [out, in] from the shape of that.
        group: input channels that share a scale; None where any number does.
    """

    tensors: dict[str, Wanted]
    weight: str = "weight"
    size: Size = lambda shape: (shape[0], shape[1])
    group: int | None = None

    def shapes(self, kind: str, out_features: int, in_features: int) -> list[list[int]]:
        """Those that a tensor may have; none where any will do."""
        groups = [] if self.group is None else [[out_features, -(-in_features // self.group)]]
        return {
            NUMBER: [[], [1]],
            ROWS: [[out_features]],
            COLUMN: [[out_features, 1]],
            GROUPS: groups,
            INPUTS: [[in_features]],
        }.get(kind, [])


@dataclass
class Faults:
    """What is wrong with a folder's linears.

    Attributes:
        missing: names of tensors that are not there; extra: names of those that no such linear has.
        misshapen: tensors of another form, with what it is and what it would have to be.
    """

    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)


def faults(linears: list[Linear], layout: Layout) -> Faults:
    """Hold every quantized linear against the layout that its configuration implies."""
    found = Faults()
    for linear in linears:
        weight = linear.tensors.get(layout.weight)
        sizes = layout.size(weight.shape) if weight is not None and len(weight.shape) == 2 else None
        for suffix, wanted in layout.tensors.items():
            name, stored = linear.full_name(suffix), linear.tensors.get(suffix)
            if stored is None:
                found.missing += [] if wanted.optional else [name]
                continue
            shapes = [] if sizes is None else layout.shapes(wanted.shape, *sizes)
            misfit = stored.shape not in shapes if shapes else wanted.shape == MATRIX and len(stored.shape) != 2
            if stored.dtype not in wanted.dtypes or misfit:
                needed = " or ".join(map(str, shapes)) if stored.dtype in wanted.dtypes else wanted.dtypes[0]
                found.misshapen.append(f"{name} is {stored.dtype} {stored.shape}, not {needed or 'a matrix'}")
        others = sorted(linear.tensors.keys() - layout.tensors.keys() - BESIDES)
        found.extra += [linear.full_name(suffix) for suffix in others]
    return found


def damaged(found: Faults, missing: Callable[[str], Finding], misshapen: Callable[[str], Finding]) -> Findings:
    """What a runtime does about tensors that are missing or of another form."""
    if found.missing:
        yield missing(f"{some(found.missing)} missing from the folder; make it again")
    if found.misshapen:
        yield misshapen(f"{some(found.misshapen)}; make the folder again")


def modelopt_layout(algo: str, group: int | None) -> Layout | None:
    """ModelOpt's linear of an algorithm; None where it is not known here."""
    tensors = MODELOPT.get(algo)
    if tensors is None:
        return None
    if algo == "W4A16_AWQ":
        return Layout(tensors, size=lambda shape: (2 * shape[0], shape[1]), group=group)
    return Layout(tensors)


MODELOPT = {
    "FP8": {
        "weight": Wanted((FLOAT8,), MATRIX),
        "weight_scale": Wanted(FLOATS, NUMBER), "input_scale": Wanted(FLOATS, NUMBER),
    },
    "FP8_PER_CHANNEL_PER_TOKEN": {"weight": Wanted((FLOAT8,), MATRIX), "weight_scale": Wanted(FLOATS, ROWS)},
    "W8A8_SQ_PER_CHANNEL": {
        "weight": Wanted((INT8,), MATRIX),
        "weight_scale": Wanted(FLOATS, ROWS), "input_scale": Wanted(FLOATS, NUMBER),
    },
    "W4A16_AWQ": {"weight": Wanted((BYTES,), MATRIX), "weight_scale": Wanted(FLOATS, GROUPS)},
    "W8A16": {"weight": Wanted((INT8,), MATRIX), "weight_scale": Wanted(FLOATS, ROWS)},
}  # fmt: skip
