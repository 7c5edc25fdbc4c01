"""Rules that several runtimes share."""

from __future__ import annotations

from .findings import Findings, misreads, note, some, unknown
from .folder import Folder, Linear

FP8_GPUS = "FP8 is computed from SM89 on; below, only weights are FP8"


def not_tried(folder: Folder) -> Findings:
    """A folder in floating point is read; of others nothing is known."""
    if folder.method:
        yield unknown(f"config.json: quant_method {folder.method} was not tried")
    elif folder.linears:
        where = some([linear.name for linear in folder.linears])
        yield unknown(f"{where}: quantized, but config.json has no quantization_config; put the tool's own there")


def smoothed(folder: Folder) -> Findings:
    """Factors of a linear's input, which no layout of these readers has."""
    names = [linear.full_name("pre_quant_scale") for linear in folder.smoothed]
    if names:
        yield misreads(f"{some(names)}: dropped, as nothing here reads it; fold it into what comes before")


def mixed(folder: Folder, outside: set[str]) -> list[str]:
    """The first linear of each fused one whose parts are not treated alike."""

    def kinds(group: list[Linear]) -> set[tuple[bool, bool]]:
        return {(linear.quantized, linear.name in outside) for linear in group}

    return [together(group) for group in folder.fused if len(kinds(group)) > 1]


def together(group: list[Linear]) -> str:
    """Linears of one module in few words."""
    around, _, _ = group[0].name.rpartition(".")
    return f"{around}: {', '.join(linear.last_name for linear in group)}"


def unequal(folder: Folder, suffix: str) -> list[str]:
    """Fused linears whose parts have different numbers of this name."""
    found = []
    for group in folder.fused:
        names = [linear.full_name(suffix) for linear in group if suffix in linear.tensors]
        numbers = [folder.values(name) for name in names if folder.shards[name].tensors[name].shape in ([], [1])]
        if len({float(number[0]) for number in numbers}) > 1:
            found.append(together(group))
    return found


def contradicted(folder: Folder, outside: set[str], forgotten: list[str], key: str) -> Findings:
    """Lists that say otherwise than the tensors."""
    if forgotten:
        yield unknown(f"{some(forgotten)}: in floating point, but {key} does not list it; list it by its full name")
    listed = [linear.name for linear in folder.linears if linear.name in outside]
    if listed:
        yield unknown(f"{some(listed)}: quantized, but {key} leaves it in floating point; correct the list")


def rounded_twice(folder: Folder) -> Findings:
    """Weights with one FP8 scale, of linears that become one linear with one scale."""
    weights = unequal(folder, "weight_scale")
    if weights:
        yield note(f"{some(weights)}: unequal weight_scale: rounded again to the largest; write one scale for all")
    inputs = unequal(folder, "input_scale")
    if inputs:
        yield note(f"{some(inputs)}: unequal input_scale: the largest is taken for all; write one scale for all")
