"""Which tool has quantized a folder, and how: what its files say, held against each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import InputError, printable, shown
from ...files.disk import parse_json
from ...files.pinned import Pinned
from ...files.reader import Reader
from .awq import AWQ, awq_config
from .compressed import COMPRESSED, compressed_config
from .gptq import AUTO_ROUND, GPTQ, auto_round_config, gptq_config
from .kinds import LeftOut, ReadyMade
from .scaled import MODELOPT, modelopt_config

READERS = {
    GPTQ: gptq_config,
    AUTO_ROUND: auto_round_config,
    "intel/auto-round": auto_round_config,
    AWQ: awq_config,
    COMPRESSED: compressed_config,
    MODELOPT: modelopt_config,
}
# Files beside config.json that say how the weights are quantized, and what wrote them.
FILES = {
    "quantize_config.json": GPTQ,
    "quant_config.json": AWQ,
    "quantization_config.json": AUTO_ROUND,
    "hf_quant_config.json": MODELOPT,
}


def read_ready_made(config_file: Path, config: dict[str, Any], beside: dict[str, Pinned]) -> ReadyMade | None:
    """What config.json's quantization_config and the files beside it say; None for a folder in floating point.

    Args:
        beside: those of FILES that are there.

    Raises:
        InputError: a quantization that cannot be read, or files that contradict each other.
    """
    embedded = Reader(config).section("quantization_config").values
    said = []
    if embedded and not (embedded.get("quant_method") == MODELOPT and "hf_quant_config.json" in beside):
        said.append(interpret(config_file, embedded))
    for name, file in beside.items():
        values = parse_json(file.text(), file.path)
        if FILES[name] == MODELOPT:
            values = modelopt_values(Reader(values, name), embedded)
        said.append(interpret(file.path, {"quant_method": FILES[name], **values}))
    for other in said[1:]:
        if other != said[0]:
            raise InputError(f"{other.file.name} and {said[0].file.name} describe different quantizations; remove one")
    return replace(said[0], left_out=tuple(left for one in said for left in named(one))) if said else None


def named(said: ReadyMade) -> list[LeftOut]:
    """What one file says about linears in floating point, with the file's name."""
    return [replace(left, key=f"{said.file.name}: {left.key}") for left in said.left_out]


def modelopt_values(said: Reader, embedded: dict[str, Any]) -> dict[str, Any]:
    """hf_quant_config.json's content; config.json's copy of it says less, and must not say otherwise."""
    values = said.section("quantization").values
    if embedded.get("quant_method") == MODELOPT and embedded.get("quant_algo") != values.get("quant_algo"):
        raise InputError(f"{said.file} and config.json describe different quantizations; remove one")
    return values


def interpret(file: Path, config: dict[str, Any]) -> ReadyMade:
    """The description that one configuration gives."""
    method = config.get("quant_method") or config.get("method")
    reader = READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise InputError(
            f"{printable(file.name, 60)}: the model is already quantized ({shown(method)}); give the unquantized "
            f"model, or one quantized by {GPTQ}, {AWQ}, {COMPRESSED}, {AUTO_ROUND} or {MODELOPT}"
        )
    return reader(Reader(config, file.name), file)
