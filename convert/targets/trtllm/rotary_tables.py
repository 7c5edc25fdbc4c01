"""Rotary tables in a checkpoint: TensorRT-LLM rotates with those it finds, and computes the others when it loads.

    rotary_inv_freq                     f_i              [head_size / 2]
    embed_positions_for_gpt_attention   cos, sin of p f_i, side by side        [1, positions * head_size]
    embed_positions                     sin, then cos of p / 10000^(2i / d)    [1, positions, head_size]

The last one is for networks without the attention plugin, and is never scaled. Tables are compared with what
config.json means. Frequencies may differ by 1e-5, since theta^x is off by some 1e-6 wherever x is rounded to float32;
cos and sin of p f_i by 1e-5, and by what rounding p f_i to float32 makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ....plugins.lazy import torch
from ...models.model import Model
from ...models.rotary import rotary_frequencies
from .layout import FREQUENCIES, PAIRS, UNSCALED

TOLERANCE, ROUNDED = 1e-5, 2.0**-23
THETA = 1e4


def faults(tables: Mapping[str, torch.Tensor], model: Model) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of tables of the right shapes and dtype, as far as they are there."""
    if not tables:
        return
    frequencies, positions = rotary_frequencies(model)[0], model.max_position_embeddings
    if FREQUENCIES in tables:
        theirs = tables[FREQUENCIES]
        if not ((theirs - frequencies).abs() <= TOLERANCE * frequencies).all():
            yield FREQUENCIES, "holds other frequencies than config.json implies"
            return
        frequencies = theirs
    if PAIRS in tables:
        if FREQUENCIES not in tables:
            yield PAIRS, f"is there without {FREQUENCIES}"
        elif not close(tables[PAIRS].view(positions, -1, 2).unbind(-1), frequencies):
            yield PAIRS, f"is not cos and sin of positions times {FREQUENCIES}"
    if UNSCALED in tables:
        plain = THETA ** -(torch.arange(0, model.head_size, 2).double() / model.head_size)
        sin, cos = tables[UNSCALED][0].chunk(2, -1)
        if not close((cos, sin), plain.float()):
            yield UNSCALED, f"is not sin and cos of positions times {THETA:g}^(-2i / {model.head_size})"


def close(pair: tuple[torch.Tensor, ...], frequencies: torch.Tensor) -> bool:
    """Whether cos and sin, [positions, head_size / 2] each, are those of positions times frequencies; not for NaN."""
    angles = torch.outer(torch.arange(len(pair[0])).float(), frequencies)
    allowed = TOLERANCE + ROUNDED * angles
    return all(
        bool(((found - wanted).abs() <= allowed).all())
        for found, wanted in zip(pair, (angles.cos(), angles.sin()), strict=True)
    )
