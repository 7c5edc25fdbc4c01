"""Rotary embeddings: what the configuration of either style says about them, defaults written out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...plugins.lazy import torch
from ..errors import InputError, shown
from ..files.reader import Reader

ROPE_TYPES = ("linear", "dynamic", "llama3", "yarn", "longrope")
OLD_NAMES = {"su": "longrope"}
# Types whose frequencies TensorRT-LLM computes wrongly at load, unless the checkpoint brings its own tables.
TABLED_ROPE_TYPES = ("dynamic", "yarn")
# Float32 counts no further, one by one; a table of so many positions has 8 GB for heads of 128.
MOST_TABLED_POSITIONS = 2**24
POSITIONS_AT_ONCE = 65536
YARN_NUMBERS = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")


@dataclass(frozen=True)
class Rope:
    """What a configuration says of rotary embeddings.

    Attributes:
        theta: the base of frequencies.
        scaling: None for plain ones, else a dictionary with ``rope_type`` and every number that type reads, defaults
            written out, since TensorRT-LLM's defaults are not transformers'; what a type does not read is left out.
        fraction: of a head's channels, the first, that are turned.
    """

    theta: float = 1e4
    scaling: dict[str, Any] | None = None
    fraction: float = 1.0


def read_rope(
    config: dict[str, Any],
    positions: int,
    keys: Mapping[str, str] | None = None,
    usual: Rope = Rope(),
    types: Sequence[str] = ROPE_TYPES,
) -> Rope:
    """What config.json says, in either style.

    Args:
        positions: max_position_embeddings.
        keys: config.json's names of rope_theta and partial_rotary_factor, where they are others.
        usual: what a family takes where nothing is said.
        types: that are known.
    """
    said, keys = Reader(config), keys or {}
    old = said.section("rope_scaling")
    section = old if old.values else said.section("rope_parameters")  # transformers' order
    whole = section.section("full_attention")  # beside layers with a window, which have their own
    section = whole if whole.values else section
    kind = section.text_or_none("rope_type") or section.text_or_none("type")
    kind = OLD_NAMES.get(kind or "", kind)

    def number(name: str, default: float) -> float:
        return float(section.number(name) if section.has(name) else said.number(keys.get(name, name), default))

    theta, fraction = number("rope_theta", usual.theta), number("partial_rotary_factor", usual.fraction)
    if kind is None:
        given = [key for key in section.values if section.has(key)]
        others = [key for key in given if key not in ("rope_theta", "partial_rotary_factor")]
        if others:
            raise InputError(f"config.json: rope scaling has {shown(', '.join(others))} but no rope_type; state one")
    if kind in (None, "default"):
        return Rope(theta, None, fraction)
    if kind not in types:
        known = ", ".join(("default", *types))
        raise InputError(f"config.json: rope type {shown(kind)} is not supported; supported: {known}")
    return Rope(theta, {"rope_type": kind, **numbers(str(kind), section, said, positions)}, fraction)


def numbers(kind: str, section: Reader, said: Reader, positions: int) -> dict[str, Any]:
    """What a rope type reads."""
    if kind == "longrope":
        return longrope(section, said, positions)
    factor = section.number("factor")
    if factor < 1:
        raise InputError(f"config.json: rope type {kind} needs a factor of at least 1, not {shown(factor)}")
    read: dict[str, Any] = {"factor": factor}
    if kind in ("llama3", "yarn"):
        # transformers lets the one beside the section win.
        place = said if said.has("original_max_position_embeddings") else section
        read["original_max_position_embeddings"] = place.integer("original_max_position_embeddings", positions)
    if kind == "llama3":
        low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
        if low >= high:
            raise InputError(f"config.json: low_freq_factor {low} must be less than high_freq_factor {high}")
        read |= {"low_freq_factor": low, "high_freq_factor": high}
    if kind == "yarn":
        read |= {key: section.number(key) for key in YARN_NUMBERS if section.has(key)}
        if section.has("truncate"):
            read["truncate"] = section.flag("truncate")
    return read


def longrope(section: Reader, said: Reader, positions: int) -> dict[str, Any]:
    """Two divisors of every frequency, for sequences up to the original length and beyond it."""
    place = said if said.has("original_max_position_embeddings") else section
    original = place.integer("original_max_position_embeddings", positions, least=2)
    for key in ("factor", "attention_factor"):
        if section.has(key):
            raise section.wrong(key, "null: engines compute it from both lengths")
    return {
        "original_max_position_embeddings": original,
        "short_factor": section.numbers("short_factor"),
        "long_factor": section.numbers("long_factor"),
    }


def table_scale(scaling: dict[str, Any] | None, positions: int) -> float:
    """What an engine's cos and sin are multiplied by: of longrope sqrt(1 + ln(grown) / ln(original)), whatever the
    length; else 1."""
    if scaling is None or scaling["rope_type"] != "longrope":
        return 1.0
    original = scaling["original_max_position_embeddings"]
    return math.sqrt(1 + math.log(max(positions / original, 1.0)) / math.log(original))


def check_rope(theta: float, scaling: dict[str, Any] | None, head_size: int, positions: int) -> None:
    """Raise InputError where a rope type's formula has no value, or its table no end.

    Args:
        head_size: channels of a head that are turned.
    """
    kind = None if scaling is None else scaling["rope_type"]
    if scaling is not None and kind == "longrope":
        for key in ("short_factor", "long_factor"):
            if len(scaling[key]) != head_size // 2:
                raise InputError(f"config.json: {key} has {len(scaling[key])} numbers; it needs {head_size // 2}")
    if kind == "yarn" and theta <= 1:
        raise InputError(f"config.json: rope type yarn needs a rope_theta above 1, not {theta:g}")
    if kind == "dynamic" and head_size <= 2:
        raise InputError(f"config.json: rope type dynamic needs a head size above 2, not {head_size}")
    if kind in TABLED_ROPE_TYPES and positions > MOST_TABLED_POSITIONS:
        raise InputError(
            f"config.json: max_position_embeddings {positions}: with rope type {kind} a checkpoint holds a table of "
            f"all positions, at most {MOST_TABLED_POSITIONS}; state a smaller one"
        )


def attention_factor(scaling: dict[str, Any]) -> float:
    """What YaRN multiplies cos and sin by: 0.1 ln(factor) + 1, unless the configuration says otherwise."""

    def grown(times: float = 1.0) -> float:
        return 1.0 if scaling["factor"] <= 1 else 0.1 * times * math.log(scaling["factor"]) + 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return grown(scaling["mscale"]) / grown(scaling["mscale_all_dim"])
    return grown()


def rotary_pairs(frequencies: torch.Tensor, positions: int) -> Iterator[torch.Tensor]:
    """(cos, sin) of every position and frequency, float32 [positions, head_size / 2, 2], some positions at a time."""
    for some in torch.arange(positions).split(POSITIONS_AT_ONCE):
        angles = torch.outer(some.float(), frequencies)
        yield torch.stack((angles.cos(), angles.sin()), -1)
